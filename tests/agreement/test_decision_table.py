# SPDX-License-Identifier: Apache-2.0
"""The decision table through the oracle, the engine and the doors of a real Envoy, and what must be refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ext_authz.casefile import Case, InvalidCase, read, result_of
from ext_authz.play.engine import EnginePlayer
from ext_authz.play.prepare import refusal
from ext_authz.play.results import agrees
from tests.oracle import Conflict, Oracle

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests/cases"
POLICY, MORE, PACKETS, INVALID = (
    read(CASES / name) for name in ("policy.yaml", "more.yaml", "packets.yaml", "invalid.yaml")
)
ALL = (*POLICY.cases, *MORE.cases, *PACKETS.cases)


def named(case: Case | InvalidCase) -> str:
    return case.id


@pytest.mark.parametrize("case", ALL, ids=named)
def test_oracle_answers_as_the_table(case: Case) -> None:
    oracle = Oracle(case.fixtures, [document.raw for document in case.documents], case.settings)
    for probe in case.probes:
        got = oracle.answer(probe)
        assert agrees(result_of(probe), got), (probe, got)
        # An authentication that nobody asked for would pass unnoticed: tables state it only where there is one.
        assert ("auth" in got) == ("auth" in probe), (probe, got)


@pytest.mark.parametrize("case", ALL, ids=named)
def test_engine_answers_as_the_table(case: Case) -> None:
    ((_, outcomes),) = EnginePlayer().play([case])
    for probe, outcome in zip(case.probes, outcomes, strict=True):
        assert outcome.got is not None
        assert agrees(result_of(probe), outcome.got), (probe, outcome)
        assert ("auth" in outcome.got) == ("auth" in probe), (probe, outcome)


@pytest.mark.parametrize("case", INVALID.invalid, ids=named)
def test_invalid_documents_are_refused_with_their_place(case: InvalidCase) -> None:
    error = refusal(case)
    assert error is not None
    assert error.field
    assert error.reason
    # The place is inside the case: below the line on which its document starts.
    lines = Path(case.file).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines, 1) if line == f"- id: {case.id}")
    ends = [number for number, line in enumerate(lines, 1) if line.startswith("- id: ") and number > start]
    assert start < error.origin.line < (ends[0] if ends else len(lines) + 1)


@pytest.mark.parametrize("case", [case for case in INVALID.invalid if case.layer == "compute"], ids=named)
def test_oracle_cannot_compute_conflicts_either(case: InvalidCase) -> None:
    oracle = Oracle(POLICY.worlds["base"], [document.raw for document in case.documents], POLICY.cases[0].settings)
    with pytest.raises(Conflict):
        oracle.side(oracle.fixture.find(case.subject or ""), case.direction or "")


@pytest.mark.needs_envoy
@pytest.mark.needs_namespaces
@pytest.mark.parametrize("door", ["module", "ext-authz", "ext-proc"])
def test_door_answers_as_the_table(door: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ext_authz.cli", "test", POLICY.path, MORE.path, PACKETS.path, "--json"]
    command += ["--via", door, "--keep", str(tmp_path / "kept")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr + "".join(
        line for line in done.stdout.splitlines(keepends=True) if '"ok": false' in line
    )
    *lines, last = map(json.loads, done.stdout.splitlines())
    assert last["failed"] == 0
    assert last["passed"] + last["skipped"] == len(lines) == sum(len(case.probes) for case in ALL)
    # What fits is played: TCP without authentication, which is all of it but DNS and Kafka; requests alone by ext-proc.
    probes = {(case.id, number): probe for case in ALL for number, probe in enumerate(case.probes)}
    for line in lines:
        probe = probes[line["case"], line["probe"]]
        fits = probe.get("protocol") == "TCP" and not {"dns", "kafka", "auth"} & probe.keys()
        fits &= door != "ext-proc" or "http" in probe
        assert (line["skipped"] is None) == fits, line
