# SPDX-License-Identifier: Apache-2.0
"""`idmesh compile`: policy files to a snapshot."""

from __future__ import annotations

import argparse
import json
import stat
from pathlib import Path

from ext_authz.cli import Failure
from ext_authz.commands.inputs import Progress, add_source_arguments, compile_sources, load_sources, print_problems
from ext_authz.compiler.compile import Compiled
from ext_authz.compiler.publish import FileTransport
from ext_authz.files import replace_file
from ext_authz.identity.allocator import AllocationError
from ext_authz.model.load import Loaded
from ext_authz.state import State


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("compile", help="policy files to a snapshot", description=__doc__)
    add_source_arguments(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", type=Path, help="the snapshot")
    parser.add_argument("--dump", action="store_true", help="print the tables; values of secrets are left out")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--identities", metavar="FILE", type=Path, help="keep identity numbers in this file")
    kept.add_argument("--state", metavar="DIR", type=Path, help="use the numbers and revisions of this state directory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Nothing is written if anything is wrong."""
    _check_output(args.output)
    progress = Progress()
    progress("reading")
    loaded = load_sources(args)
    progress(f"compiling {len(loaded.world.policies)} policies for {len(loaded.world.endpoints)} endpoints")
    try:
        compiled = _compile(args, loaded)
    except AllocationError as error:
        raise Failure(str(error)) from error
    finally:
        progress("")
    print_problems([*compiled.errors, *compiled.warnings], args.json)
    if compiled.errors:
        return 1
    replace_file(args.output, compiled.snapshot)
    _report(args, compiled)
    return 0


def _check_output(path: Path) -> None:
    """The snapshot replaces its file by a rename, which would put it in the place of a device or a link too."""
    if not path.parent.is_dir():
        raise Failure(f"-o {path}: there is no folder {path.parent}")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise Failure(f"-o {path}: is no regular file, and a snapshot replaces the file it is written to")


def _compile(args: argparse.Namespace, loaded: Loaded) -> Compiled:
    if args.state is None:
        return compile_sources(loaded, args.identities)
    state = State(args.state)
    state.prepare()
    return compile_sources(loaded, state.identities, FileTransport(args.state).revision)


def _report(args: argparse.Namespace, compiled: Compiled) -> None:
    facts = {
        "file": str(args.output),
        "revision": compiled.revision,
        "digest": compiled.digest,
        "size": len(compiled.snapshot),
        "warnings": len(compiled.warnings),
    }
    if args.dump:
        print(_dump(compiled.snapshot, facts, args.json))
    elif args.json:
        print(json.dumps(facts))
    else:
        print(f"{args.output}: revision {compiled.revision}, {len(compiled.snapshot)} bytes, {compiled.digest[:16]}")


def _dump(snapshot: bytes, facts: dict[str, object], as_json: bool) -> str:
    from ext_authz.engine import dump  # late: it takes the engine

    tables = dump.load(snapshot)
    return json.dumps(facts | {"tables": tables.record()}) if as_json else tables.text()
