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
from ext_authz.model.load import Loaded, find_files, load
from ext_authz.model.nodes import printable
from ext_authz.model.settings import SettingsError, parse_settings
from ext_authz.model.types import PolicyError, World


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("validate", help="check policies and context files", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file or folder")
    parser.add_argument("--strict", action="store_true", help="refuse objects of kinds that are not read")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="a setting")
    parser.add_argument("--settings", metavar="FILE", dest="settings_file", help="settings as a YAML map")
    parser.add_argument("--node", metavar="NAME", help="name of the own Node")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        settings = parse_settings(args.settings, args.settings_file)
    except SettingsError as error:
        raise Failure(str(error)) from None
    if not find_files(args.paths):
        raise Failure(f"no .yaml, .yml or .json file in {', '.join(args.paths)}")
    loaded = load(args.paths, settings=settings, node=args.node, strict=args.strict)
    conflicts, warnings = _conflicts(loaded.world)
    problems = [*loaded.errors, *conflicts, *loaded.warnings, *warnings]
    for problem in problems:
        print(_json_line(problem) if args.json else _text_line(problem))
    errors = len(loaded.errors) + len(conflicts)
    print(_summary(loaded, errors, len(problems) - errors), file=sys.stderr)
    return 1 if errors else 0


def _conflicts(world: World) -> tuple[list[PolicyError], list[PolicyError]]:
    """What each object allows but all together do not; the compiler knows."""
    from ext_authz.compiler.check import check_world  # late: it takes the whole compiler

    return check_world(world)


def _text_line(problem: PolicyError) -> str:
    origin, ref = problem.origin, problem.ref
    name = f"{ref.namespace}/{ref.name}" if ref.namespace else ref.name
    warning = "warning: " if problem.severity == "warning" else ""
    where = f"{origin.file}:{origin.line}:{origin.column}"
    return printable(
        f"{where}: {ref.kind or 'Document'} {name or '-'}: {problem.field or '-'}: {warning}{problem.reason}"
    )


def _json_line(problem: PolicyError) -> str:
    origin, ref = problem.origin, problem.ref
    return json.dumps(
        {
            "file": origin.file,
            "line": origin.line,
            "col": origin.column,
            "kind": ref.kind,
            "namespace": ref.namespace,
            "name": ref.name,
            "field": problem.field,
            "reason": problem.reason,
            "severity": problem.severity,
        }
    )


def _summary(loaded: Loaded, errors: int, warnings: int) -> str:
    counts = ((len(loaded.objects), "object"), (errors, "error"), (warnings, "warning"))
    parts = [f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts]
    if loaded.skipped:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(loaded.skipped.items()))
        parts.append(f"{sum(loaded.skipped.values())} of other kinds skipped ({kinds})")
    return ", ".join(parts)
