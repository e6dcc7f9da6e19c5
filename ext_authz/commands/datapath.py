# SPDX-License-Identifier: Apache-2.0
"""`idmesh datapath`: what stands in the kernel of this host, whether or not a node runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from ext_authz.cli import Failure
from ext_authz.commands.tables import add_state_argument, print_rows
from ext_authz.logs import escape
from ext_authz.state import State, default_state, read_json

_EPILOG = """\
status: whether the kernel follows the policies, and what is attached. Exit: 0 well, 1 something is amiss, 2 there is
none. policy: what the kernel looks up for an endpoint, peer by peer, each with the rule it comes from. connections:
those it knows. services: the backends that connections to a Service's address get. monitor: its verdicts as they are
given (needs a running node).
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "datapath",
        help="show what the kernel enforces",
        description="Show what the kernel of this host enforces.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_state_argument(actions.add_parser("status", help="revision, attached endpoints, what is amiss"))
    add_state_argument(actions.add_parser("maps", help="the maps and how full they are"))
    policy = actions.add_parser("policy", help="the expanded policy of an endpoint")
    policy.add_argument("name", metavar="NAME", help="NAMESPACE/NAME or an address")
    add_state_argument(policy)
    add_state_argument(actions.add_parser("connections", help="connections that the kernel knows"))
    add_state_argument(actions.add_parser("services", help="Services' addresses and the backends behind them"))
    monitor = actions.add_parser("monitor", help="verdicts as they are given")
    monitor.add_argument("--last", type=int, default=0, metavar="N", help="begin with so many that were already seen")
    add_state_argument(monitor)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "status": _status,
        "maps": _maps,
        "policy": _policy,
        "connections": _connections,
        "services": _services,
        "monitor": _monitor,
    }
    return actions[args.action](args)


def _state(args: argparse.Namespace) -> State:
    return State((args.state or default_state()).absolute())


def _page(state: State) -> dict[str, Any]:
    """
    What the data path's process wrote last.

    Raises:
        Failure: Nothing stands in the kernel, or this user may not know.
    """
    path = state.datapath / "page.json"
    try:
        found = json.loads(path.read_bytes())
    except PermissionError:
        raise Failure(f"{state.datapath}: only its owner may look") from None
    except (OSError, ValueError):
        raise Failure(_nothing(state)) from None
    if not state.has_datapath:
        raise Failure(_nothing(state))
    return dict(found)


def _nothing(state: State) -> str:
    node = read_json(state.status)
    told = node.get("datapath") if isinstance(node, dict) else None
    reason = told.get("why_not") if isinstance(told, dict) else ""
    return escape(f"nothing stands in the kernel for {state.root}" + (f": {reason}" if reason else ""))


def _status(args: argparse.Namespace) -> int:
    state = _state(args)
    page = _page(state)
    node = read_json(state.status) or {}
    running = state.running()
    warnings = list(page["warnings"])
    if running is None:
        warnings.append(f"no node runs: the kernel stays with revision {page['revision']}")
    elif (node.get("datapath") or {}).get("trouble"):
        warnings.append(node["datapath"]["trouble"])
    record = {**page, "node": running, "warnings": warnings}
    record.pop("maps")
    if args.json:
        print(json.dumps(record))
    else:
        for line in _status_lines(record):
            print(escape(line))
    return int(bool(warnings))


def _status_lines(page: dict[str, Any]) -> list[str]:
    lines = [f"revision   {page['revision']}, generation {page['generation']}"]
    lines.append(f"steering   to 127.0.0.1:{page['proxy_port']}" if page["proxy_port"] else "steering   no Envoy")
    for attached in page["attached"]:
        where = f"cgroup {attached['cgroup']}" if attached["cgroup"] else f"interface {attached['ifindex']}"
        more = f", {attached['stage']}" if attached["stage"] != "attached" else ""
        more += f", {attached['gone']}" if attached["gone"] else ""
        lines.append(f"attached   {attached['endpoint']} at {where}: {' '.join(attached['addresses'])}{more}")
    packets = page["packets"]
    lines.append(f"packets    {packets['passed']} passed")
    from ext_authz.flow.shape import DROP_REASONS

    for reason, sides in packets["dropped"].items():
        shown = ", ".join(f"{count} {side}" for side, count in sides.items())
        lines.append(f"dropped    {DROP_REASONS.get(int(reason), reason)}: {shown}")
    lines += [f"lost       {page['events_lost']} events"] if page["events_lost"] else []
    return lines + ([f"warning    {warning}" for warning in page["warnings"]] or ["well"])


def _maps(args: argparse.Namespace) -> int:
    maps = _page(_state(args))["maps"]
    if args.json:
        for one in maps:
            print(json.dumps(one))
        return 0
    rows = [("MAP", "TYPE", "ROWS", "LIMIT", "FULL", "BYTES")]
    for one in maps:
        known = one["rows"] is not None
        full = f"{100 * one['rows'] / one['limit']:.1f}%" if known and one["limit"] else ""
        shown = str(one["rows"]) if known else ""
        rows.append((one["name"], one["type"], shown, str(one["limit"]), full, str(one["bytes"])))
    print_rows(rows)
    return 0


def _monitor(args: argparse.Namespace) -> int:
    from ext_authz.commands import flows

    wanted = [(False, "door", "bpf")]
    asked = {"filters": wanted, "file": None, "follow": True, "last": args.last, "json": args.json}
    return flows.run(argparse.Namespace(**asked, state=args.state))


def _policy(args: argparse.Namespace) -> int:
    from ext_authz.commands.kernel_view import show_policy

    return show_policy(_state(args), args.name, args.json)


def _services(args: argparse.Namespace) -> int:
    from ext_authz.commands.kernel_services import show_services

    return show_services(_state(args), args.json)


def _connections(args: argparse.Namespace) -> int:
    from ext_authz.commands.kernel_view import show_connections

    return show_connections(_state(args), args.json)
