# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests with a real Envoy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from envoy_backend import Backend, http_backend
from envoy_harness import MODULE, NEWEST, Node, envoy_of, missing
from envoy_places import Place, place
from envoy_run import Run, prepared

from ext_authz.envoy_binary import EnvoyBinary


@pytest.fixture(scope="session", autouse=True)
def _module_is_built() -> None:
    if not MODULE.exists():
        missing("the Envoy module is not built: make setup")


@pytest.fixture(scope="session")
def envoy() -> EnvoyBinary:
    """The newest Envoy served."""
    return envoy_of(NEWEST)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    return Node(state)


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """One place for examples with each kind of backend, made when it is first wanted."""
    with ExitStack() as stack:
        made: dict[str, Place] = {}

        def of(kind: str) -> Place:
            if kind not in made:
                made[kind] = stack.enter_context(place(kind, tmp_path_factory.mktemp(kind)))
            return made[kind]

        yield of


@pytest.fixture
def backend() -> Iterator[Backend]:
    with http_backend() as started:
        yield started


@pytest.fixture
def run(tmp_path: Path, envoy: EnvoyBinary, backend: Backend) -> Iterator[Run]:
    made = prepared(tmp_path, envoy, backend)
    try:
        yield made
    finally:
        made.end()
