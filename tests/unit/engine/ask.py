# SPDX-License-Identifier: Apache-2.0
"""Short questions to an engine: the server's ingress, unless said otherwise."""

from __future__ import annotations

from typing import Any

from ext_authz.compiler.entries import MergedEntry
from ext_authz.engine import Engine, Flow, Verdict
from ext_authz.engine.types import Direction
from tests.native.builder import TCP, A, snapshot

SERVER_NAME = "default/server"


def ask(engine: Engine, peer: int | str = A, port: int = 80, protocol: int = TCP, **facts: Any) -> Verdict:
    known: dict[str, Any] = {"direction": Direction.INGRESS, "subject": SERVER_NAME}
    return engine.decide(Flow(peer=peer, protocol=protocol, port=port, **(known | facts)))


def engine(*entries: MergedEntry, **fields: Any) -> Engine:
    """The server's ingress has these entries."""
    return Engine.open(snapshot(*entries, **fields))


def judge(entries: MergedEntry | tuple[MergedEntry, ...], peer: int | str = A, port: int = 80, **facts: Any) -> Verdict:
    """Ask about entries alone."""
    return ask(engine(*(entries if isinstance(entries, tuple) else (entries,))), peer, port, **facts)
