# SPDX-License-Identifier: Apache-2.0
"""
idmesh validate: all that is wrong with the files, one line each.

The lines are the command's data, so they go to stdout; the count goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from ext_authz.cli import Failure
from ext_authz.commands.inputs import add_source_arguments, error_text
from ext_authz.compiler.check import check_world
from ext_authz.compiler.compile import Compiler
from ext_authz.compiler.matcher import BudgetError, PatternError, build_matcher
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import Loaded, find_files, load
from ext_authz.model.reading import shown
from ext_authz.model.settings import SettingsError, parse_settings
from ext_authz.model.types import HttpRule, Origin, Policy, PolicyError, PortRule, World


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
    problems = _all_problems(loaded)
    for problem in problems:
        print(json.dumps(problem.record()) if args.json else error_text(problem))
    errors = sum(problem.severity == "error" for problem in problems)
    print(_summary(loaded, errors, len(problems) - errors), file=sys.stderr)
    return 1 if errors else 0


def _all_problems(loaded: Loaded) -> list[PolicyError]:
    """What single objects say, what they say together, and what would cost too much; errors first, each once."""
    conflicts, warnings = check_world(loaded.world)
    errors = [*loaded.errors, *conflicts, *_dear_patterns(loaded.world)]
    if loaded.world.endpoints:  # some budgets are known only once rules meet on a subject
        errors += Compiler(MemoryAllocator()).compile(loaded.world).errors
    return list({_identity(problem): problem for problem in (*errors, *loaded.warnings, *warnings)}.values())


def _identity(problem: PolicyError) -> tuple[Origin, str, str]:
    return problem.origin, problem.field, problem.reason


def _dear_patterns(world: World) -> Iterator[PolicyError]:
    """Expressions that alone would cost a request too much."""
    known: dict[str, str | None] = {}
    for policy, port_rule, index, rule in _http_rules(world):
        for name in ("method", "path", "host"):
            pattern = getattr(rule, name)
            if pattern is None:
                continue
            if pattern not in known:
                known[pattern] = _price(pattern)
            reason = known[pattern]
            if reason is not None:
                field = f"{port_rule.path}.rules.http[{index}].{name}"
                yield PolicyError(rule.origin or policy.origin, policy.ref, field, f"{shown(pattern)}: {reason}")


def _http_rules(world: World) -> Iterator[tuple[Policy, PortRule, int, HttpRule]]:
    for policy in world.policies:
        for entry in (entry for rule in policy.rules for entry in rule.entries):
            for port_rule in entry.to_ports or ():
                rules = port_rule.rules.http if port_rule.rules is not None else None
                for index, rule in enumerate(rules or ()):
                    yield policy, port_rule, index, rule


def _price(pattern: str) -> str | None:
    try:
        build_matcher([pattern])
    except (PatternError, BudgetError) as error:
        return error.reason
    return None


def _summary(loaded: Loaded, errors: int, warnings: int) -> str:
    counts = ((len(loaded.objects), "object"), (errors, "error"), (warnings, "warning"))
    parts = [f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts]
    if loaded.skipped:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(loaded.skipped.items()))
        parts.append(f"{sum(loaded.skipped.values())} of other kinds skipped ({kinds})")
    return ", ".join(parts)
