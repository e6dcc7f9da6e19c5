# SPDX-License-Identifier: Apache-2.0
"""Random scenarios through a real Envoy: what the client gets is what the oracle says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.agreement.compare import OVER_BUDGET, Product, answer, conflicts, is_telling
from tests.agreement.generate import Generator
from tests.oracle import Oracle

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS, PROBES, FIRST = 20, 40, 900_000


def case_of(seed: int) -> dict[str, Any] | None:
    """A scenario in the case format, answered by the oracle; None if it cannot be compiled."""
    generator = Generator(seed)
    scenario = generator.scenario
    oracle = Oracle(scenario.world, scenario.policies, scenario.settings)
    errors = Product(scenario, []).compiled.errors
    if conflicts(oracle) or any(OVER_BUDGET in error.reason for error in errors):
        return None
    asked = [(probe, answer(oracle, probe)) for probe in (generator.probe() for _ in range(PROBES * 8))]
    fitting = [(probe, wanted) for probe, wanted in asked if probe.get("protocol") == "TCP"]
    fitting.sort(key=lambda pair: not is_telling(pair[1]))
    probes = [probe | wanted for probe, wanted in fitting[:PROBES]]
    return {
        "id": f"SEED-{seed}",
        **scenario.world,
        "settings": scenario.settings,
        "policies": scenario.policies,
        "probes": probes,
    }


@pytest.mark.needs_envoy
@pytest.mark.needs_namespaces
@pytest.mark.parametrize("door", ["module", "ext-authz", "ext-proc"])
def test_door_decides_as_the_oracle_on_random_flows(door: str, tmp_path: Path) -> None:
    cases = [case for seed in range(FIRST, FIRST + SCENARIOS) if (case := case_of(seed)) is not None]
    file = tmp_path / "random.yaml"
    file.write_text(json.dumps({"format": 1, "cases": cases}))
    command = [sys.executable, "-m", "ext_authz.cli", "test", str(file), "--json", "--via", door]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [line for line in lines if line.get("ok") is False]
    assert done.returncode == 0, (done.stderr, wrong[:3])
    assert lines[-1]["passed"] > SCENARIOS * PROBES / 4, lines[-1]
