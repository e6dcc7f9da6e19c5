# SPDX-License-Identifier: Apache-2.0
"""Whatever configuration doctor is given, it answers with findings; no check ever breaks."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ext_authz.doctor.config.judge import judge

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "envoy/examples").glob("*.json"))
ROUNDS = 4000 if os.environ.get("IDMESH_SOAK") else 150

_NAMES = ["static_resources", "listeners", "filter_chains", "filters", "typed_config", "@type", "http_filters", "name"]
_NAMES += ["virtual_hosts", "typed_per_filter_config", "bootstrap_extensions", "load_assignment", "listener_filters"]
_TYPES = ["x/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz", "x/HttpConnectionManager", "x/TypedStruct", "idmesh"]
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(_TYPES)
_trees = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=40,
)
_relaxed = settings(max_examples=ROUNDS, deadline=None, suppress_health_check=list(HealthCheck))


def judged(data: bytes) -> None:
    for finding in judge(data):
        assert finding.check != "doctor", finding
        assert finding.what


@_relaxed
@given(_trees)
def test_any_json_is_judged(tree: Any) -> None:
    judged(json.dumps(tree).encode())


@_relaxed
@given(_trees)
def test_any_yaml_is_judged(tree: Any) -> None:
    judged(yaml.safe_dump(tree, allow_unicode=True).encode())


@_relaxed
@given(st.binary(max_size=200))
def test_any_bytes_are_judged(data: bytes) -> None:
    judged(data)


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((value, key))
        found += _places(item)
    return found


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_with_any_value_replaced_is_judged(path: Path) -> None:
    """Every value of a whole configuration is once one of another kind, or gone."""
    chance = random.Random(path.stem)
    strange: list[Any] = [None, True, 0, -1, 1e300, "", "idmesh", "0s", [], {}, [[]], [{}], {"@type": 1}, {"value": []}]
    tree = json.loads(path.read_text())
    places = _places(tree)
    for holder, key in places if os.environ.get("IDMESH_SOAK") else chance.sample(places, min(40, len(places))):
        kept = holder[key]
        holder[key] = chance.choice(strange)
        judged(json.dumps(tree).encode())
        holder[key] = kept
