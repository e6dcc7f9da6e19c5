# SPDX-License-Identifier: Apache-2.0
"""`idmesh explain`: why a flow passes or not, at both ends, with the rule and line that decided."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ext_authz.cli import Failure
from ext_authz.commands.inputs import add_source_arguments, compile_sources, load_sources, print_problems
from ext_authz.compiler.compile import Compiled
from ext_authz.engine.engine import Engine
from ext_authz.engine.types import Direction, Flow, Http
from ext_authz.explain import Side, UnknownEnd, View, explain, find_end
from ext_authz.explain.names import PROTOCOLS
from ext_authz.explain.sides import result_text, side_record, side_text
from ext_authz.identity.allocator import AllocationError
from ext_authz.logs import escape
from ext_authz.model.types import PolicyError

if TYPE_CHECKING:
    from ext_authz.commands.decision import Recorded

_CODES = {"allowed": 0, "denied": 1, "unknown": 2}
# Nothing here denies it, but a door denies whom it does not know (165).
_UNKNOWN = (
    "cannot be told: who would be judged is no endpoint of this node in these files (name those that say who is who; "
    "--node says which is this node)"
)
_NUMBERS = {name.upper(): number for number, name in PROTOCOLS.items()}


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("explain", help="why a flow passes or not", description=__doc__)
    add_source_arguments(parser)
    ends = "NAMESPACE/NAME, an address, an identity number or a reserved name"
    parser.add_argument("--from", metavar="X", dest="source", help=ends)
    parser.add_argument("--to", metavar="Y", dest="destination", help=ends)
    parser.add_argument("--port", metavar="N[/PROTO]", help="destination port (TCP), or ICMP type")
    parser.add_argument("--http", metavar='"GET host/path"', help="a request on that connection")
    parser.add_argument(
        "-H", "--header", action="append", default=[], metavar='"Name: value"', dest="headers", help="repeatable"
    )
    parser.add_argument("--dns", metavar="NAME", help="a DNS query on that connection")
    parser.add_argument("--sni", metavar="NAME", help="server name of the TLS client hello")
    parser.add_argument(
        "--decision", metavar="ID", help="instead of all that: a recorded flow, from the node or --file"
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help="of the node (--decision; /run/idmesh for root)")
    parser.add_argument("--file", type=Path, metavar="FILE", help="a file of flow lines (--decision)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 allowed, 1 denied, 2 if it cannot be told."""
    _check(args)
    try:
        recorded, sides = _explain_recorded(args) if args.decision else (None, _explain_asked(args))
    except UnknownEnd as error:
        raise Failure(str(error)) from error
    result = result_text(sides)
    if recorded is not None and not _judged_as_recorded(recorded, sides):
        result = "unknown"
    if args.json:
        print(
            json.dumps({"result": result, "sides": [side_record(side) for side in sides], **_record(recorded, result)})
        )
    else:
        lines = [line for side in sides for line in side_text(side)]
        print("\n".join(_lines(recorded, lines, result)))
    return _CODES[result]


def _explain_asked(args: argparse.Namespace) -> list[Side]:
    facts = read_facts(args)
    view = _open_view(args)
    return explain(view, find_end(view, args.source), find_end(view, args.destination), facts)


def _explain_recorded(args: argparse.Namespace) -> tuple[Recorded, list[Side]]:
    # Here, because asking the node needs gRPC, and explaining does not.
    from ext_authz.commands.decision import facts_of, find_decision, find_recorded_end

    recorded = find_decision(args.decision, args.state, args.file)
    facts = facts_of(recorded)
    view = _open_view(args)
    source, destination = (find_recorded_end(view, recorded, which) for which in ("source", "destination"))
    return recorded, explain(view, source, destination, facts)


def _judged_as_recorded(recorded: Recorded, sides: list[Side]) -> bool:
    """False: what was judged then, at this end of the flow, is not asked about here."""
    wanted = str(recorded.flow.get("traffic_direction"))
    return any(side.judged for side in sides if wanted in (side.direction.name, "None", "TRAFFIC_DIRECTION_UNKNOWN"))


def _check(args: argparse.Namespace) -> None:
    asked = {"--from": args.source, "--to": args.destination, "--port": args.port}
    if not args.decision:
        missing = [name for name, value in asked.items() if value is None]
        if missing:
            raise Failure(f"{', '.join(missing)}: missing (or give --decision)")
        return
    more = {"--http": args.http, "-H": args.headers, "--dns": args.dns, "--sni": args.sni}
    given = [name for name, value in (asked | more).items() if value]
    if given:
        raise Failure(f"--decision says what {', '.join(given)} would: give one of them")
    if args.state and args.file:
        raise Failure("--state asks a node, --file does not: give one of them")


def _open_view(args: argparse.Namespace) -> View:
    loaded = load_sources(args)
    try:
        compiled = compile_sources(loaded)
    except AllocationError as error:
        raise Failure(str(error)) from error
    _refuse(compiled, args.json)
    return View(Engine.open(compiled.snapshot))


def _lines(recorded: Recorded | None, lines: list[str], result: str) -> list[str]:
    said = _UNKNOWN if result == "unknown" else result
    if recorded is None:
        return [*lines, said]
    same = "as recorded" if recorded.passed == (result == "allowed") else "unlike recorded"
    notes = [escape(f"note: {note}") for note in recorded.notes]
    answer = said if result == "unknown" else f"{said}, {same}"
    return [escape(f"recorded: {recorded.text()}"), *lines, *notes, answer]


def _record(recorded: Recorded | None, result: str) -> dict[str, Any]:
    if recorded is None:
        return {}
    same = None if result == "unknown" else recorded.passed == (result == "allowed")
    return {"recorded": recorded.flow, "as_recorded": same, "notes": recorded.notes}


def read_facts(args: argparse.Namespace) -> Flow:
    """
    The flow as the options say it; its ends are still missing.

    Raises:
        Failure: An option does not read as it should.
    """
    port, protocol = read_port(args.port)
    http = read_http(args.http, args.headers)
    if sum(fact is not None for fact in (http, args.dns)) > 1:
        raise Failure("--http and --dns are facts of different connections: give one")
    return Flow(
        direction=Direction.INGRESS,
        peer=0,
        protocol=protocol,
        port=port,
        http=http,
        dns=args.dns,
        sni=args.sni,
        raw_path=True,
    )


def read_port(text: str) -> tuple[int, int]:
    """Port and IP protocol of "N" or "N/PROTO"."""
    number, slash, name = text.partition("/")
    protocol = _NUMBERS.get(name.upper()) if slash else _NUMBERS["TCP"]
    if protocol is None:
        raise Failure(f"--port {text}: the protocol must be one of {', '.join(_NUMBERS)}")
    if not (number.isascii() and number.isdigit() and int(number) <= 65535):
        raise Failure(f"--port {text}: must be N or N/PROTO with N from 0 to 65535")
    return int(number), protocol


def read_http(text: str | None, headers: list[str]) -> Http | None:
    """The request of "METHOD HOST/PATH"; the host may be left out, and a whole URL is understood."""
    if text is None:
        if headers:
            raise Failure("-H needs --http")
        return None
    method, space, target = text.partition(" ")
    if not space or not method or not target.strip():
        raise Failure(f'--http {text!r}: must be "METHOD host/path"')
    scheme, mark, rest = target.strip().partition("://")
    host, slash, path = (rest if mark and scheme in ("http", "https") else target.strip()).partition("/")
    lines = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise Failure(f'-H {header!r}: must be "Name: value"')
        lines.append((name.strip(), value.strip()))
    return Http(method, slash + path if slash else "/", host, tuple(lines))


def _refuse(compiled: Compiled, as_json: bool) -> None:
    """An answer from half of the files would be about other policies than those of the node."""
    problems: list[PolicyError] = [*compiled.errors, *compiled.warnings]
    print_problems(problems, as_json)
    if compiled.errors:
        raise Failure("the files have errors, so what they mean cannot be told")
