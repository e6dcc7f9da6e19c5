# SPDX-License-Identifier: Apache-2.0
"""
idmesh validate: all that is wrong with the files, one line each.

The lines are the command's data, so they go to stdout; the count goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys

from ext_authz.cli import Failure
from ext_authz.commands.inputs import add_source_arguments, error_record, error_text
from ext_authz.compiler.check import check_world
from ext_authz.model.load import Loaded, find_files, load
from ext_authz.model.settings import SettingsError, parse_settings


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("validate", help="check policies and context files", description=__doc__)
    add_source_arguments(parser)
    parser.add_argument("--strict", action="store_true", help="refuse objects of kinds that are not read")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        settings = parse_settings(args.pairs, args.settings)
    except SettingsError as error:
        raise Failure(str(error)) from None
    if not find_files(args.paths):
        raise Failure(f"no .yaml, .yml or .json file in {', '.join(args.paths)}")
    loaded = load(args.paths, settings=settings, node=args.node, strict=args.strict)
    conflicts, warnings = check_world(loaded.world)
    problems = [*loaded.errors, *conflicts, *loaded.warnings, *warnings]
    for problem in problems:
        print(json.dumps(error_record(problem)) if args.json else error_text(problem))
    errors = len(loaded.errors) + len(conflicts)
    print(_summary(loaded, errors, len(problems) - errors), file=sys.stderr)
    return 1 if errors else 0


def _summary(loaded: Loaded, errors: int, warnings: int) -> str:
    counts = ((len(loaded.objects), "object"), (errors, "error"), (warnings, "warning"))
    parts = [f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts]
    if loaded.skipped:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(loaded.skipped.items()))
        parts.append(f"{sum(loaded.skipped.values())} of other kinds skipped ({kinds})")
    return ", ".join(parts)
