# SPDX-License-Identifier: Apache-2.0
"""The decision table, played on the semantic half alone by a slow reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ext_authz.casefile import RESULT_KEYS, Case, InvalidCase, read
from ext_authz.compiler.check import check_world
from ext_authz.compiler.resolve import resolve
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.play.world import build
from tests.unit.compiler.slow import Slow

CASES = Path(__file__).parents[2] / "cases"


def _lower(value: Any) -> Any:
    """Header names in any case."""
    if isinstance(value, dict):
        return {key.lower(): _lower(item) for key, item in value.items()}
    return [item.lower() for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", read(CASES / "policy.yaml").cases, ids=lambda case: case.id)
def test_case_comes_out_as_the_table_says(case: Case) -> None:
    built = build(case)
    assert not built.errors
    resolved = resolve(built.world, MemoryAllocator())
    assert not resolved.errors
    slow = Slow(resolved)
    for probe in case.probes:
        got = slow.play(probe)
        for key in RESULT_KEYS:
            if key in probe:
                wanted = probe[key] if key != "upstream_headers" else _lower(probe[key])
                assert got.get(key) == wanted, (probe, got)
        assert got.get("auth") == probe.get("auth"), (probe, got)


@pytest.mark.parametrize(
    "case", [case for case in read(CASES / "invalid.yaml").invalid if case.layer == "compute"], ids=lambda case: case.id
)
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("with_endpoints", [True, False])
def test_what_cannot_be_computed_is_refused_in_either_order(
    case: InvalidCase, order: int, with_endpoints: bool
) -> None:
    world = build(case).world
    world = replace(world, policies=world.policies[::order], endpoints=world.endpoints if with_endpoints else ())
    errors, _ = check_world(world)
    assert errors
