# SPDX-License-Identifier: Apache-2.0
"""`idmesh apply`: hand a source to the running node, or take one back."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ext_authz.agent.applied import LIMIT, ApplyError, check
from ext_authz.agent.status import Reader
from ext_authz.agent.waiting import wait_for_readers
from ext_authz.cli import Failure
from ext_authz.commands.inputs import error_text, record_text
from ext_authz.logs import escape
from ext_authz.model.load import find_files, load, read_bytes
from ext_authz.model.types import PolicyError
from ext_authz.state import State, default_state, folder_problem

if TYPE_CHECKING:
    import grpc

# The longest the node may take to compile; the wait for the readers has its own limit.
_ANSWER_S = 150.0
_EPILOG = """\
A file or folder stands from then on as it was when it was handed in, also after a restart of the node; the same PATH
again replaces it whole. It is kept in the state directory; /run does not outlive a reboot.
Objects that are bad are refused one by one and keep their last good version.
Exit: 0 in force, 1 objects were refused or a reader has not acknowledged in time, 2 no node runs or PATH holds nothing.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "apply",
        help="hand policies to the running node",
        description="Hand files or folders to the running node.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files and folders, YAML or JSON")
    parser.add_argument("--wait", action="store_true", help="until every reader has acknowledged the revision")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="of --wait (30)")
    parser.add_argument("--remove", action="store_true", help="take what was handed in as PATH out of force")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--state", type=Path, metavar="DIR", help="state directory (/run/idmesh for root)")
    parser.set_defaults(run=run)


@dataclass
class _Outcome:
    """What became of it all. errors: records as `idmesh validate --json` prints them."""

    revision: int = 0
    digest: str = ""
    objects: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    waiting: list[Reader] = field(default_factory=list)

    @property
    def code(self) -> int:
        if self.failures:
            return 2
        refused = any(error.get("severity", "error") == "error" for error in self.errors)
        return int(refused or bool(self.waiting))


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.timeout < math.inf:
        raise Failure("--timeout must be a number of seconds, not negative")
    state = State((args.state or default_state()).absolute())
    sources = {os.path.abspath(path): _named(path) if args.remove else _read(path) for path in args.paths}
    if not args.remove:
        closing = _closing(args.paths)
        if closing:
            for error in closing:
                print(json.dumps(error.record()) if args.json else error_text(error), file=sys.stderr)
            print("idmesh apply: nothing was handed in: whom this selects cannot be read", file=sys.stderr)
            return 1
    if state.running() is None:
        raise Failure(f"no node is running with the state directory {state.root}")
    # Who made the directory answers at its socket, and would be handed the Secrets among the sources.
    if problem := folder_problem(state.root):
        raise Failure(escape(problem))
    outcome = _hand_over(state, sources, args.remove)
    if args.wait and not outcome.failures:
        outcome.waiting = wait_for_readers(state, outcome.revision, args.timeout)
    _print(outcome, args)
    return outcome.code


def _named(path: str) -> list[tuple[str, bytes]]:
    """
    No files, of a source that is to go.

    Raises:
        Failure: No source has such a name.
    """
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        raise Failure(escape(f"{path}: nothing was handed in under a name that is not UTF-8")) from None
    return []


def _read(path: str) -> list[tuple[str, bytes]]:
    """
    Files of a source under their absolute paths.

    Raises:
        Failure: It holds nothing, or something cannot be read.
        OSError: It is not there.
    """
    base = os.path.abspath(path)
    files = []
    for name, given in find_files([base]):
        content = read_bytes(name, given)
        if isinstance(content, PolicyError):
            raise Failure(escape(f"{name}: {content.reason}"))
        files.append((name, content))
    if not files:
        raise Failure(escape(f"no .yaml, .yml or .json file in {path}"))
    try:
        check(base, files)
    except ApplyError as error:
        raise Failure(escape(error)) from None
    return files


def _closing(paths: Sequence[str]) -> list[PolicyError]:
    """Errors that would close the whole node, because nobody can tell whom they concern."""
    loaded = load([os.path.abspath(path) for path in paths])
    return loaded.errors if loaded.world.closed else []


def _hand_over(state: State, sources: dict[str, list[tuple[str, bytes]]], remove: bool) -> _Outcome:
    import grpc

    from ext_authz.pb.idmesh.v1 import node_pb2, node_pb2_grpc

    size = LIMIT + (8 << 20)
    options = (("grpc.max_send_message_length", size), ("grpc.max_receive_message_length", size))
    with grpc.insecure_channel(f"unix:{state.admin}", options=options) as channel:
        admin = node_pb2_grpc.AdminStub(channel)
        calls = []
        for name, files in sources.items():
            if remove:
                calls.append(admin.Withdraw.future(node_pb2.WithdrawRequest(name=name), timeout=_ANSWER_S))
                continue
            found = [node_pb2.SourceFile(path=path, content=content) for path, content in files]
            calls.append(admin.Apply.future(node_pb2.ApplyRequest(name=name, files=found), timeout=_ANSWER_S))
        try:
            return _collect([call.result() for call in calls])
        except grpc.RpcError as error:
            raise Failure(_unreachable(state, error)) from None


def _unreachable(state: State, error: grpc.RpcError) -> str:
    details = error.details() if hasattr(error, "details") else str(error)
    return escape(f"the node does not answer at {state.admin}: {details}")


def _collect(replies: Sequence[Any]) -> _Outcome:
    """Of several sources the highest revision holds all."""
    outcome = _Outcome(objects=sum(reply.objects for reply in replies))
    for reply in replies:
        if reply.failure:
            outcome.failures.append(reply.failure)
        outcome.errors += [json.loads(line) for line in reply.errors]
        if reply.revision >= outcome.revision:
            outcome.revision, outcome.digest = reply.revision, reply.digest
    return outcome


def _print(outcome: _Outcome, args: argparse.Namespace) -> None:
    for failure in outcome.failures:
        print(escape(f"idmesh apply: {failure}"), file=sys.stderr)
    if args.json:
        record = {name: value for name, value in vars(outcome).items() if name != "waiting"}
        print(json.dumps({**record, "waiting": [dataclasses.asdict(reader) for reader in outcome.waiting]}))
        return
    given = {os.path.abspath(path): path for path in args.paths}
    for error in outcome.errors:
        print(record_text({**error, "file": _as_given(error["file"], given)}), file=sys.stderr)
    if not outcome.failures:
        what = "withdrawn" if args.remove else f"{outcome.objects} objects"
        print(f"revision {outcome.revision}: {what}")
    if outcome.code == 1 and outcome.errors and not args.remove:
        where = ["--state", str(args.state)] if args.state else []
        again = escape(shlex.join(["idmesh", "apply", "--remove", *where, *args.paths]))
        print(
            f"idmesh apply: what was refused is kept, and holds what it names at its last good version; mend it and "
            f"apply it again under the same name, or take it back: {again}",
            file=sys.stderr,
        )
    for reader in outcome.waiting:
        print(escape(_late(reader, outcome.revision)), file=sys.stderr)


def _as_given(file: str, given: dict[str, str]) -> str:
    """The file as the user would write it: below the path as he gave it."""
    for base, path in given.items():
        if file == base:
            return path
        if file.startswith(base.rstrip("/") + "/"):
            return os.path.join(path, os.path.relpath(file, base))
    return file


def _late(reader: Reader, revision: int) -> str:
    where = f" at {reader.address}" if reader.address else ""
    has = f"has revision {reader.revision}" if reader.revision else "has none yet"
    said = f": {reader.error}" if reader.error else ""
    return f"reader {reader.pid} ({reader.door}{where}) {has}, not {revision}{said}"
