# SPDX-License-Identifier: Apache-2.0
"""`idmesh status`: is the node well, and what decides where."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from ext_authz.agent.status import Reader, Status, read_status
from ext_authz.logs import escape
from ext_authz.state import State, default_state


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "status",
        help="show the node's state",
        description="Show revision, readers, source errors and standing warnings. Exit: 0 well, 1 not, 2 no node runs.",
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--state", type=Path, metavar="DIR", help="state directory (/run/idmesh for root)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    status = _read(args.state)
    if args.json:
        print(json.dumps(as_record(status)))
    else:
        for line in as_lines(status):
            print(escape(line))
    return 2 if status.pid is None else int(not status.healthy)


def _read(folder: Path | None) -> Status:
    """Files of the state directory are its owner's; the group idmesh asks the node's observer, which reads them."""
    state = State(folder or default_state())
    try:
        return read_status(state)
    except PermissionError:
        if not (state.root / "api.sock").exists():
            raise  # nobody could be asked
        from ext_authz.commands.reading import read_service  # gRPC is slow to import
        from ext_authz.pb.idmesh.v1 import node_pb2

        with read_service(folder) as service:
            return from_record(json.loads(service.GetStatus(node_pb2.GetStatusRequest()).json))


def as_record(status: Status) -> dict[str, Any]:
    page = {key: value for key, value in status.page.items() if key != "pid"}
    return {
        "healthy": status.healthy,
        "pid": status.pid,
        "problems": status.problems,
        "readers": [dataclasses.asdict(reader) for reader in status.readers],
        **page,
    }


def from_record(record: dict[str, Any]) -> Status:
    """What `as_record` was made of."""
    page = dict(record)
    pid, problems, readers = page.pop("pid"), page.pop("problems"), page.pop("readers")
    del page["healthy"]
    return Status(pid, page, [Reader(**reader) for reader in readers], problems)


def as_lines(status: Status) -> list[str]:
    """The same for people."""
    lines = [f"node      {'running, pid ' + str(status.pid) if status.pid else 'not running'}"]
    page = status.page
    if page.get("revision"):
        age = max(0.0, time.time() - float(page.get("published") or 0))
        lines.append(f"snapshot  revision {page['revision']}, {page['digest'][:16]}, published {age:.0f} s ago")
        counts = ", ".join(f"{count} {name}" for name, count in page.get("counts", {}).items())
        lines.append(f"holds     {counts}")
    lines += [f"source    {_source(source)}" for source in page.get("sources", [])]
    lines += [f"reader    {_reader(reader)}" for reader in status.readers]
    lines += _datapath(page.get("datapath") or {})
    lines += _figures(page)
    for error in page.get("errors", [])[:20]:
        lines.append(f"error     {_place(error)}")
    more = int(page.get("error_count") or 0) - 20
    if more > 0:
        lines.append(f"error     ... and {more} more (--json shows them)")
    lines += [f"kept      {name} stands in its last good version" for name in page.get("kept", [])]
    lines += [f"warning   {_standing(warning)}" for warning in page.get("standing", [])]
    lines += [f"problem   {problem}" for problem in status.problems]
    return lines if status.problems else [*lines, "well"]


def _datapath(datapath: dict[str, Any]) -> list[str]:
    """One line: what is enforced in the kernel, or why nothing is."""
    if not datapath:
        return []
    if datapath.get("active"):
        attached = datapath.get("attached") or []
        steered = f", steering to port {datapath['proxy_port']}" if datapath.get("proxy_port") else ""
        said = f"revision {datapath.get('revision', 0)}, {len(attached)} attached{steered}"
    else:
        said = datapath.get("why_not") or ("off" if datapath.get("mode") == "off" else "nothing is attached")
    return [f"datapath  {said}"]


def _figures(page: dict[str, Any]) -> list[str]:
    """Propagation and pressure."""
    lines = []
    spread = page.get("propagation") or {}
    if spread.get("count"):
        p50, p99 = (1000 * float(spread[name]) for name in ("p50", "p99"))
        lines.append(f"spread    p50 {p50:.1f} ms, p99 {p99:.1f} ms from event to reader ({spread['count']} counted)")
    pressure = dict(page.get("pressure") or {})
    flows = pressure.pop("flows", {})
    rows = [(name, row) for name, row in pressure.items() if "used" in row]
    rows += [(f"map {name}", row) for name, row in pressure.get("maps", {}).items()]
    rows += [(f"{kind} numbers", row) for kind, row in pressure.get("identities", {}).items()]
    lines += [f"pressure  {name.replace('_', ' ')}: {_used(row)}" for name, row in rows if row["used"]]
    if flows.get("written") or flows.get("lost"):
        lines.append(f"flows     {flows['written']} records written, {flows['lost']} lost")
    observer = page.get("observer") or {}
    if observer.get("pid"):
        lines.append(f"observer  pid {observer['pid']}")
    return lines


def _used(row: dict[str, Any]) -> str:
    used, limit = row["used"], row["limit"]
    return f"{used} of {limit} ({100 * used / limit:.1f}%)" if limit else str(used)


def _source(source: dict[str, Any]) -> str:
    text = f"{source['role']} {source['path']}: {source['files']} files, {source['objects']} objects"
    return f"{text}: {source['problem']}" if source.get("problem") else text


def _reader(reader: Any) -> str:
    counts = " ".join(f"{name}={count}" for name, count in reader.counts.items())
    where = f" {reader.address}" if reader.address else ""
    state = f"STALE, {reader.lag} behind" if reader.stale else f"{reader.lag} behind" if reader.lag else "current"
    age = f" for {reader.age_s:.0f} s" if reader.age_s is not None else ""
    return f"{reader.door} pid {reader.pid}{where}: revision {reader.revision}{age}, {state} {counts}".rstrip()


def _place(error: dict[str, Any]) -> str:
    name = "/".join(part for part in (error["namespace"], error["name"]) if part)
    subject = " ".join(part for part in (error["kind"], name) if part)
    place = f"{error['file']}:{error['line']}:{error['col']}"
    return ": ".join(part for part in (place, subject, error["field"], error["reason"]) if part)


def _standing(warning: dict[str, Any]) -> str:
    place = f"{warning['file']}:{warning['line']}" if warning.get("file") else ""
    return ": ".join(part for part in (place, warning.get("object", ""), warning["reason"]) if part)
