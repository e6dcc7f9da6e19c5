# SPDX-License-Identifier: Apache-2.0
"""Attacks run against real doors: the fixtures of tests/envoy, and a worker of the ext_authz service."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "envoy"), str(TESTS / "unit/service")]

from attack_service import Service, service  # noqa: E402
from envoy_backend import Backend, http_backend  # noqa: E402
from envoy_harness import MODULE, NEWEST, Node, envoy_of, missing  # noqa: E402

from ext_authz.envoy_binary import EnvoyBinary  # noqa: E402
from tests.attack.attacker import attacker, capture, place, site  # noqa: E402, F401


@pytest.fixture(scope="session", autouse=True)
def _module_is_built() -> None:
    if not MODULE.exists():
        missing("the Envoy module is not built: make setup")


@pytest.fixture(scope="session")
def envoy() -> EnvoyBinary:
    return envoy_of(NEWEST)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    (state / "readers").mkdir(mode=0o700)
    return Node(state)


@pytest.fixture
def backend() -> Iterator[Backend]:
    with http_backend() as started:
        yield started


@pytest.fixture
def authz(node: Node, tmp_path: Path) -> Iterator[Service]:
    with service(node, tmp_path / "authz.sock") as started:
        yield started
