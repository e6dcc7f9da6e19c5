# SPDX-License-Identifier: Apache-2.0
"""
idmesh test: play case files, through the engine or through a real Envoy, and compare.

A case file holds worlds, policies and probes with the answers they should get, or documents that must be refused
(tests/cases/policy.yaml and tests/cases/invalid.yaml describe both at their heads).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ext_authz.casefile import Case, CaseError, CaseFile, InvalidCase, Raw, read, result_of
from ext_authz.cli import Failure
from ext_authz.play.results import Line, Outcome, PlayError, Report, probe_title

WAYS = ("engine", "module", "ext-authz", "ext-proc", "bpf", "host")
DOORS = ("module", "ext-authz", "ext-proc")
# Where the world of refused documents comes from if their file has none.
BASE_WORLD = "base"
NEIGHBOUR = "policy.yaml"


class Player(Protocol):
    """One way to play. Outcomes come in the order of the probes."""

    def play(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Sequence[Outcome]]]: ...


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("test", help="play case files and compare", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="case file")
    parser.add_argument("--via", choices=WAYS, default="engine", help="what decides (default: engine)")
    parser.add_argument("--only", metavar="ID,...", help="play these cases only")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="leave configuration, logs and stats there")
    parser.add_argument("--json", action="store_true", help="one JSON object a probe")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    files = [_read(path) for path in args.files]
    cases, invalid = _chosen(files, args.only)
    report = Report(sys.stdout, args.json)
    try:
        player = _player(args.via, args.keep)
        for line in _lines(player, cases):
            report.add(line)
        for case in _with_worlds(invalid, files):
            report.add(_refused_line(case))
    except (CaseError, PlayError) as error:
        raise Failure(str(error)) from None
    report.close()
    return 1 if report.failed else 0


def _read(path: str) -> CaseFile:
    try:
        return read(path)
    except CaseError as error:
        raise Failure(str(error)) from None


def _chosen(files: Iterable[CaseFile], only: str | None) -> tuple[list[Case], list[InvalidCase]]:
    cases = [case for file in files for case in file.cases]
    invalid = [case for file in files for case in file.invalid]
    if only is None:
        return cases, invalid
    wanted = {name.strip() for name in only.split(",") if name.strip()}
    unknown = wanted - {case.id for case in cases} - {case.id for case in invalid}
    if unknown or not wanted:
        raise Failure(f"no such case: {', '.join(sorted(unknown)) or only}")
    return [case for case in cases if case.id in wanted], [case for case in invalid if case.id in wanted]


def _player(via: str, keep: Path | None) -> Player:
    if via == "engine":
        from ext_authz.play.engine import EnginePlayer

        return EnginePlayer(keep)
    if via == "bpf":
        from ext_authz.play.bpf import BpfPlayer

        return BpfPlayer(keep)
    if via not in DOORS:
        raise Failure(f"--via {via}: not part of this version")
    from ext_authz.play.doors import DoorPlayer

    return DoorPlayer(via, keep)


def _lines(player: Player, cases: Sequence[Case]) -> Iterator[Line]:
    for case, outcomes in player.play(cases):
        for number, (probe, outcome) in enumerate(zip(case.probes, outcomes, strict=True)):
            yield Line(case.id, number, result_of(probe), outcome, probe_title(probe))


def _with_worlds(invalid: Iterable[InvalidCase], files: Iterable[CaseFile]) -> Iterator[InvalidCase]:
    """Documents without a world are judged in the base world, if one of the files or a neighbour of theirs has it."""
    for case in invalid:
        fixtures = None if case.fixtures["endpoints"] else _base_world(case, files)
        yield replace(case, fixtures=fixtures) if fixtures else case


def _base_world(case: InvalidCase, files: Iterable[CaseFile]) -> Raw | None:
    for file in files:
        if BASE_WORLD in file.worlds:
            return file.worlds[BASE_WORLD]
    neighbour = Path(case.file).with_name(NEIGHBOUR)
    return _read(str(neighbour)).worlds.get(BASE_WORLD) if neighbour.exists() else None


def _refused_line(case: InvalidCase) -> Line:
    from ext_authz.play.prepare import refusal, refused

    error = refusal(case)
    place = f"{error.origin.file}:{error.origin.line}: {error.field}" if error else None
    return Line(case.id, 0, {"expect": "refuse"}, Outcome(got=refused(error), entry=place), "must be refused")
