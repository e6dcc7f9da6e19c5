# SPDX-License-Identifier: Apache-2.0
"""`idmesh flows`: what was decided, from the running node or from a file of flow lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ext_authz.cli import Failure
from ext_authz.commands.reading import read_service
from ext_authz.flow.compact import compact
from ext_authz.flow.facts import read_line
from ext_authz.flow.filters import FilterError, make_filter
from ext_authz.flow.sink import read_rotated
from ext_authz.pb.idmesh.v1 import node_pb2

_LAST = 20
_LOST = {"ring": "the observer was too slow for a door", "client": "this command was too slow"}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "flows",
        help="show flows and their verdicts",
        description="Show flows: the newest, or with --follow those to come. Filters of one kind are alternatives, "
        "filters of different kinds must all hold. --not turns the next filter round.",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    parser.add_argument("--last", type=_count, metavar="N", help=f"how many already seen ({_LAST}, with --follow 0)")
    parser.add_argument("--json", action="store_true", help="Hubble's exporter form, a line a flow")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--state", type=Path, metavar="DIR", help="state directory (/run/idmesh for root)")
    source.add_argument("--file", type=Path, metavar="FILE", help="a file of flow lines, with FILE.1 and so on")
    _add_filters(parser)
    parser.set_defaults(run=run, filters=[], negated=False)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


class _Not(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.negated = True


class _Filter(argparse.Action):
    """Keeps (negated, field, value) in the order of the words."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.filters = [*namespace.filters, (namespace.negated, self.dest, values)]
        namespace.negated = False


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filters (repeatable)")
    group.add_argument("--not", action=_Not, nargs=0, dest="negated", help="leave out what the next filter holds for")
    texts = {
        "verdict": (("--verdict",), "V", "FORWARDED, DROPPED, AUDIT, REDIRECTED or ERROR"),
        "namespace": (("-n", "--namespace"), "NS", "of either end"),
        "label": (("-l", "--label"), "SELECTOR", "label selector, of either end"),
        "path": (("--path", "--http-path"), "REGEX", "RE2, anywhere in the path"),
        "status": (("--http-status", "--status"), "CODE", "404, or 5+ for what begins so"),
        "method": (("--method", "--http-method"), "METHOD", "of the request"),
        "from_pod": (("--from-pod",), "POD", "source: NAMESPACE/NAME, NAMESPACE/ or how a name begins"),
        "to_pod": (("--to-pod",), "POD", "destination"),
        "pod": (("--pod",), "POD", "either end"),
        "door": (("--door",), "DOOR", "module, ext-authz, ext-proc or bpf"),
        "uuid": (("--uuid", "--decision"), "ID", "the decision's id"),
        "drop_reason": (("--drop-reason",), "REASON", "Hubble's name or number"),
    }
    for field, (options, metavar, text) in texts.items():
        group.add_argument(*options, action=_Filter, dest=field, metavar=metavar, help=text)
    group.add_argument("--port", action=_Filter, type=int, metavar="N", help="source or destination")
    group.add_argument("--identity", action=_Filter, type=int, metavar="N", help="of either end")


def make_filters(words: Sequence[tuple[bool, str, Any]]) -> tuple[list[Any], list[Any]]:
    """
    Whitelist and blacklist of the filter options: one filter of all that must hold, and one of each that must not.

    Raises:
        Failure: A number is out of range.
    """
    wanted = node_pb2.FlowFilter()
    unwanted = []
    for negated, field, value in words:
        target = node_pb2.FlowFilter() if negated else wanted
        try:
            if field == "path":
                target.path = f"(?:{target.path})|(?:{value})" if target.path else value
            else:
                getattr(target, field).append(value)
        except (ValueError, TypeError):
            raise Failure(f"--{field} {value}: out of range") from None
        unwanted += [target] if negated else []
    return ([wanted] if wanted.ByteSize() else []), unwanted


def run(args: argparse.Namespace) -> int:
    whitelist, blacklist = make_filters(args.filters)
    try:
        make_filter(whitelist, blacklist)
    except FilterError as error:
        raise Failure(str(error)) from None
    if args.file is not None:
        return _from_file(args, whitelist, blacklist)
    return _from_node(args, whitelist, blacklist)


def _from_file(args: argparse.Namespace, whitelist: list[Any], blacklist: list[Any]) -> int:
    if args.follow:
        raise Failure("--follow asks the node, --file does not: give one of them")
    passes = make_filter(whitelist, blacklist)
    found: deque[str] = deque(maxlen=args.last)
    broken = 0
    for line in read_rotated(args.file):
        try:
            seen = read_line(line.rstrip("\n"))
        except ValueError:
            broken += 1
            continue
        if passes is None or passes(seen.facts):
            found.append(seen.line)
    _show(args, found)
    if broken:
        print(f"{broken} lines are no flows", file=sys.stderr)
    return 0


def _from_node(args: argparse.Namespace, whitelist: list[Any], blacklist: list[Any]) -> int:
    last = args.last if args.last is not None else 0 if args.follow else _LAST
    request = node_pb2.GetFlowsRequest(last=last, follow=args.follow, whitelist=whitelist, blacklist=blacklist)
    with read_service(args.state) as service:
        call = service.GetFlows(request)
        try:
            for reply in call:
                if reply.WhichOneof("response") == "lost":
                    print(lost_text(reply.lost), file=sys.stderr, flush=True)
                else:
                    _show(args, [reply.line.decode()])
        finally:
            call.cancel()
    if args.follow:
        raise Failure("the node's observer ended")
    return 0


def lost_text(lost: Any) -> str:
    flows = "1 flow was" if lost.count == 1 else f"{lost.count} flows were"
    return f"{flows} lost: {_LOST.get(lost.source, lost.source)}"


def _show(args: argparse.Namespace, lines: Sequence[str]) -> None:
    colour = sys.stdout.isatty()
    for line in lines:
        print(line if args.json else compact(json.loads(line).get("flow", {}), colour), flush=args.follow)
