# SPDX-License-Identifier: Apache-2.0
"""`idmesh endpoint`: workloads, their addresses and identities; and putting those of this host under the data path."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ext_authz.cli import Failure
from ext_authz.commands.tables import add_state_argument, open_directory, print_rows
from ext_authz.logs import escape
from ext_authz.state import State, default_state, folder_problem, read_json

# Compiling may take long, and the kernel's part may wait for a grace period.
_ANSWER_S = 150.0
_BEGINNING_S = 20.0
_EPILOG = """\
The programs are put on the workload first: from then on it is denied everything, until its identity is in force.
With --labels the endpoint is a Pod of this node; without, a Pod or CiliumEndpoint of the node's sources says who it is.
Labels are KEY=VALUE, separated by commas; reserved labels and sources other than k8s: are refused.
Exit: 0 attached and in force, 1 refused, 2 no node runs, or this host has no data path.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "endpoint",
        help="show endpoints, attach and detach workloads",
        description="Show endpoints of the snapshot; attach workloads of this host to the data path.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_state_argument(actions.add_parser("list", help="all endpoints"))
    _add_attach(actions)
    detach = actions.add_parser("detach", help="let go of a workload")
    detach.add_argument("name", metavar="NAME")
    detach.add_argument("--namespace", default="default", metavar="NS", help="of the endpoint (default)")
    add_state_argument(detach)
    parser.set_defaults(run=run)


def _add_attach(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "attach",
        help="put a workload under the data path",
        description="Put a workload of this host under the data path.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--netns", metavar="N", help="its network namespace: a name of ip-netns, or a path")
    where.add_argument("--pid", type=int, metavar="P", help="a process in its network namespace")
    where.add_argument("--cgroup", metavar="PATH", help="its cgroup, if it has no network namespace of its own")
    parser.add_argument("--interface", default="eth0", metavar="NAME", help="inside the namespace (eth0)")
    parser.add_argument("--ip", action="append", default=[], metavar="A", help="its address (those of the interface)")
    parser.add_argument("--labels", action="append", metavar="KEY=VALUE,...", help="who it is")
    parser.add_argument("--namespace", default="default", metavar="NS", help="of the endpoint (default)")
    add_state_argument(parser)


def run(args: argparse.Namespace) -> int:
    actions: dict[str, Callable[[argparse.Namespace], int]] = {"list": _list, "attach": _attach, "detach": _detach}
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    endpoints = open_directory(args).endpoints
    if args.json:
        for endpoint in endpoints:
            print(json.dumps(endpoint))
        return 0
    rows = [("ENDPOINT", "IDENTITY", "ADDRESSES", "WHERE", "MODE")]
    for endpoint in endpoints:
        where = "local" if endpoint["local"] else "remote"
        mode = "audit" if endpoint["audit"] else ""
        rows.append((endpoint["name"], str(endpoint["identity"]), " ".join(endpoint["addresses"]), where, mode))
    print_rows(rows)
    return 0


def _attach(args: argparse.Namespace) -> int:
    from ext_authz.agent.attachments import AttachError, parse_labels
    from ext_authz.agent.places import netns_path
    from ext_authz.pb.idmesh.v1 import node_pb2

    _check_datapath(State((args.state or default_state()).absolute()))
    request = node_pb2.AttachRequest(
        namespace=args.namespace, name=args.name, interface=args.interface, addresses=args.ip
    )
    if args.cgroup:
        request.cgroup = os.path.abspath(args.cgroup)
    elif args.pid is not None:
        request.netns, request.pid = f"/proc/{args.pid}/ns/net", args.pid
    else:
        request.netns = os.path.abspath(netns_path(args.netns))
    if args.labels is not None:
        try:
            request.labels.labels.update(parse_labels(args.labels))
        except AttachError as error:
            return _refused(args, str(error))
        request.labels.SetInParent()
    reply = _ask(args, "Attach", request)
    if reply is None:
        return 1
    record = {
        "endpoint": f"{args.namespace}/{args.name}",
        "identity": reply.identity,
        "addresses": list(reply.addresses),
        "ifindex": reply.ifindex or None,
        "revision": reply.revision,
    }
    if args.json:
        print(json.dumps(record))
    else:
        shown = " ".join(reply.addresses)
        print(escape(f"{record['endpoint']}: identity {reply.identity}, {shown}, revision {reply.revision}"))
    return 0


def _detach(args: argparse.Namespace) -> int:
    from ext_authz.pb.idmesh.v1 import node_pb2

    reply = _ask(args, "Detach", node_pb2.DetachRequest(namespace=args.namespace, name=args.name))
    if reply is None:
        return 1
    record = {"endpoint": f"{args.namespace}/{args.name}", "revision": reply.revision}
    print(json.dumps(record) if args.json else escape(f"{record['endpoint']}: detached, revision {reply.revision}"))
    return 0


def _refused(args: argparse.Namespace, reason: str) -> int:
    print(escape(f"idmesh endpoint {args.action}: {reason}"), file=sys.stderr)
    return 1


def _ask(args: argparse.Namespace, call: str, request: Any) -> Any:
    """The answer, or None where the node refused and that was said."""
    import grpc

    from ext_authz.pb.idmesh.v1 import node_pb2_grpc

    state = State((args.state or default_state()).absolute())
    _check_node(state)
    _await_node(state)
    with grpc.insecure_channel(f"unix:{state.admin}") as channel:
        try:
            reply = getattr(node_pb2_grpc.AdminStub(channel), call)(request, timeout=_ANSWER_S)
        except grpc.RpcError as error:
            details = error.details() if hasattr(error, "details") else str(error)
            raise Failure(escape(f"the node does not answer at {state.admin}: {details}")) from None
    if reply.failure:
        _refused(args, reply.failure)
        return None
    return reply


def _await_node(state: State) -> None:
    """A node that has just begun opens its socket last."""
    until = time.monotonic() + _BEGINNING_S
    while not state.admin.exists() and state.running() is not None and time.monotonic() < until:
        time.sleep(0.05)


def _check_datapath(state: State) -> None:
    page = read_json(state.status)
    told = page.get("datapath") if isinstance(page, dict) else None
    if not isinstance(told, dict) or state.running() is None:
        return
    reason = "the node runs with --datapath off" if told.get("mode") == "off" else told.get("why_not")
    if reason:
        raise Failure(escape(f"this host has no data path: {reason}"))


def _check_node(state: State) -> None:
    if state.running() is None:
        raise Failure(f"no node is running with the state directory {state.root}")
    # Who made the directory answers at its socket.
    if problem := folder_problem(Path(state.root)):
        raise Failure(escape(problem))
