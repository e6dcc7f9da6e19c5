# SPDX-License-Identifier: Apache-2.0
"""Laws that hold alike at both gRPC doors: who asks, for what, and when nothing is known."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import checks
import procs
import pytest
from checks import CLIENT, EGRESS, OTHER, POLICY, SERVER, checker, snapshot

from ext_authz.engine import Engine
from ext_authz.service.checker import Checker
from ext_authz.service.processor import Processor


@dataclass(frozen=True)
class Door:
    """One door: how its requests are made and its answers read, and the door itself with the test's policy."""

    speech: ModuleType
    made: Checker | Processor

    def of(self, data: bytes) -> Door:
        """Such a door with another snapshot (b"": none)."""
        return _door(self.speech, data)

    def ask(
        self, *, destination: str = SERVER, port: int = 80, words: dict[str, str] | None = None, **fields: Any
    ) -> Any:
        if self.speech is procs:
            fields["destination"] = f"{destination}:{port}"
        else:
            fields |= {"destination": destination, "port": port}
        return self.speech.ask(self.made, self.speech.request(**fields), **(words or {}))

    def allows(self, **fields: Any) -> bool:
        return bool(self.speech.allowed(self.ask(**fields)))

    def facts(self, **fields: Any) -> dict[str, str]:
        return dict(self.speech.facts(self.ask(**fields)))


def _door(speech: ModuleType, data: bytes | None = None) -> Door:
    made = checker(data)
    return Door(speech, Processor(made) if speech is procs else made)


@pytest.fixture(scope="module", params=[checks, procs], ids=["ext-authz", "ext-proc"])
def door(request: pytest.FixtureRequest) -> Door:
    return _door(request.param)


def test_what_a_rule_allows_passes_and_says_by_which_rule(door: Door) -> None:
    assert door.allows()
    said = door.facts()
    assert (said["verdict"], said["at"]) == ("FORWARDED", "proxy")
    assert said["policy"] == "CiliumNetworkPolicy default/web"
    assert said["rule"].startswith("policy.yaml:")
    assert len(said["decision"]) == 32


@pytest.mark.parametrize("source", ["", "not an address", "10.0.0", "10.0.0.11\0", "1" * 200])
def test_a_peer_without_address_is_denied_172(door: Door, source: str) -> None:
    assert not door.allows(source=source)
    assert door.facts(source=source)["drop"] == "172"


def test_headers_say_nothing_of_the_peer(door: Door) -> None:
    forged = {"x-forwarded-for": CLIENT, "x-real-ip": CLIENT, "forwarded": f"for={CLIENT}", "idmesh": "256"}
    assert not door.allows(source=OTHER, headers={**forged, "source.address": CLIENT})


def test_the_listener_filters_address_counts_before_the_sources(door: Door) -> None:
    assert door.allows(source=OTHER, metadata={"address": CLIENT})
    assert not door.allows(source=CLIENT, metadata={"address": OTHER})


def test_the_listener_filters_destination_counts_before_the_connections(door: Door) -> None:
    assert door.allows(destination="192.0.2.1", metadata={"address": CLIENT, "local": SERVER})


def test_evidence_that_agrees_is_taken_and_what_disagrees_denied_172(door: Door) -> None:
    identity = Engine.open(snapshot()).resolve(CLIENT)[0]
    assert door.allows(metadata={"identity": identity, "evidence": 2, "domain": "7"}, words={"require": "datapath"})
    assert door.facts(metadata={"identity": 99999, "evidence": 2})["drop"] == "172"
    assert door.facts(words={"require": "datapath"})["drop"] == "172"


@pytest.mark.parametrize("named", ["default/server:80", "10.0.0.21:80"])
def test_a_named_destination_counts_instead_of_the_connections(door: Door, named: str) -> None:
    assert door.allows(destination="127.0.0.1", port=1, words={"destination": named})


def test_both_needs_both(door: Door) -> None:
    strict = door.of(snapshot(POLICY + EGRESS))
    assert not strict.allows(words={"direction": "both"})
    assert strict.facts(words={"direction": "both"})["direction"] == "egress"
    assert door.allows(words={"direction": "both"})


def test_without_snapshot_everything_is_denied_203(door: Door) -> None:
    assert not door.of(b"").allows()
    assert door.of(b"").facts()["drop"] == "203"


@pytest.mark.parametrize("words", [{"direction": "sideways"}, {"require": "hope"}, {"port": "99999"}], ids=str)
def test_words_of_the_filter_that_make_no_sense_are_refused(door: Door, words: dict[str, str]) -> None:
    with pytest.raises((KeyError, ValueError)):
        door.ask(words=words)


def test_counts_tell_verdicts_and_drop_reasons(door: Door) -> None:
    fresh = door.of(snapshot())
    fresh.ask(), fresh.ask(source="")
    fresh.speech.ask(fresh.made, b"\xff")
    counts = dict(fresh.made.counts)
    # A check is answered with a denial all the same; a stream has nothing to deny.
    assert counts.pop("denied") == (1 if fresh.speech is procs else 2)
    assert counts == {"allowed": 1, "audit": 0, "error": 1}
    assert fresh.made.drops[172] == 1
