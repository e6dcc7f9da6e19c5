# SPDX-License-Identifier: Apache-2.0
"""The decision tables of tests/cases: what is refused there is refused here, what is valid there is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ext_authz.model.load import Loaded, load_text
from ext_authz.model.settings import parse_settings
from ext_authz.model.types import Settings

CASES = Path(__file__).parents[2] / "cases"


def read(name: str, key: str) -> list[dict[str, Any]]:
    return yaml.load((CASES / name).read_text(), Loader=yaml.CSafeLoader)[key]


def load_all(case: dict[str, Any], settings: Settings) -> Loaded:
    policies = case.get("policies", [case.get("policy")])
    return load_text("\n---\n".join(json.dumps(policy) for policy in policies), case["id"], settings=settings)


def settings_of(case: dict[str, Any]) -> Settings:
    pairs = []
    for key, value in case.get("settings", {}).items():
        text = ",".join(value) if isinstance(value, list) else str(value)
        pairs.append(f"{key}={text.lower() if isinstance(value, bool) else text}")
    return parse_settings(pairs)


@pytest.mark.parametrize("case", read("invalid.yaml", "invalid"), ids=lambda case: case["id"])
def test_what_some_layer_refuses_is_refused(case: dict[str, Any]) -> None:
    if case["layer"] == "compute":
        assert not load_all(case, Settings()).errors  # each object alone is fine; the compiler sees the conflict
        return
    loaded = load_all(case, Settings())
    assert loaded.errors
    assert not loaded.world.policies
    assert loaded.world.isolated or loaded.world.closed


@pytest.mark.parametrize("case", read("policy.yaml", "cases"), ids=lambda case: case["id"])
def test_what_cilium_accepts_is_accepted(case: dict[str, Any]) -> None:
    loaded = load_all(case, settings_of(case))
    assert not loaded.errors
    assert len(loaded.world.policies) == len(case["policies"])
