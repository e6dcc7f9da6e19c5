# SPDX-License-Identifier: Apache-2.0
"""
Cases through a real Envoy: connections from each peer's own address to each destination's own address and port.

What the client saw says whether traffic got through and with which status and headers; where and by what it was
decided stands in the door's own record. The engine of this process is not asked.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ext_authz.casefile import Case, Raw
from ext_authz.compiler.compile import Compiler
from ext_authz.envoy_binary import MODULE, EnvoyNotFound, find_envoy
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.types import Policy, PolicyError
from ext_authz.play.client import PING, Seen, client_hello, request, talk
from ext_authz.play.headers import changed
from ext_authz.play.netns import NoNamespace, ensure_privileges
from ext_authz.play.prepare import Prepared, prepare, refused_probes
from ext_authz.play.results import Outcome, PlayError
from ext_authz.play.stage import Place, Stage, Wire, Wiring
from ext_authz.xds.setup import Direction, Door, Mode

PROXY_UNSUPPORTED = 180
# Sent to a listener of requests where a probe names none.
_ANY_REQUEST: Raw = {"method": "GET", "path": "/", "host": "idmesh.test"}

StageKey = tuple[Mode, Direction, Wire]


@dataclass(frozen=True, slots=True)
class Flight:
    """One probe on its way: from which address to which place."""

    probe: Raw
    stage: StageKey
    source: str
    place: Place


class DoorPlayer:
    """Plays through one door. Raises PlayError where there is no Envoy, module or namespace to be had."""

    def __init__(self, via: str, keep: Path | None) -> None:
        try:
            ensure_privileges()
            self._envoy = find_envoy()
        except (NoNamespace, EnvoyNotFound) as error:
            raise PlayError(f"--via {via}: {error}") from None
        if not MODULE.exists():
            raise PlayError(f"--via {via}: {MODULE} is not built; run make setup")
        self._door, self._keep = Door(via), keep

    def play(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Sequence[Outcome]]]:
        with contextlib.ExitStack() as stack:
            folder = self._keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="idmesh-test-")))
            run = _Run(Wiring(self._door, self._envoy, MODULE, folder), stack)
            yield from run.play(cases)


class _Run:
    def __init__(self, wiring: Wiring, stack: contextlib.ExitStack) -> None:
        self._wiring, self._stack = wiring, stack
        self._stages: dict[StageKey, Stage] = {}
        self._revision = 0
        self._allocator = MemoryAllocator()

    def play(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Sequence[Outcome]]]:
        prepared = [self._prepare(case) for case in cases]
        flights = [self._flights(found) if isinstance(found, Prepared) else [] for found in prepared]
        self._start([flight for some in flights for flight in some if isinstance(flight, Flight)], prepared)
        for case, found, some in zip(cases, prepared, flights, strict=True):
            if isinstance(found, PolicyError):
                yield case, refused_probes(case, found)
            else:
                yield case, self._play(found, some)
        self._check_counts()

    def _prepare(self, case: Case) -> Prepared | PolicyError:
        """Every case gets a revision of its own, so that the door can say which one it decides with."""
        self._revision += 1
        return prepare(case, Compiler(self._allocator, revision=self._revision - 1))

    def _flights(self, prepared: Prepared) -> list[Flight | str]:
        return [_flight(probe, prepared, self._wiring.door) for probe in prepared.case.probes]

    def _start(self, flights: Sequence[Flight], prepared: Sequence[Prepared | PolicyError]) -> None:
        first = next((found.snapshot for found in prepared if isinstance(found, Prepared)), None)
        if first is None:
            return
        places: dict[StageKey, set[Place]] = {}
        for flight in flights:
            places.setdefault(flight.stage, set()).add(flight.place)
        for key, wanted in places.items():
            stage = self._stack.enter_context(Stage(self._wiring, *key))
            stage.start(wanted, {flight.source for flight in flights}, first)
            self._stages[key] = stage

    def _play(self, prepared: Prepared, flights: Sequence[Flight | str]) -> list[Outcome]:
        in_force: set[StageKey] = set()
        outcomes = []
        for flight in flights:
            if isinstance(flight, str):
                outcomes.append(Outcome(skipped=flight))
                continue
            stage = self._stages[flight.stage]
            if flight.stage not in in_force:
                stage.publish(prepared.snapshot, prepared.revision)
                in_force.add(flight.stage)
            outcomes.append(_fly(flight, stage))
        return outcomes

    def _check_counts(self) -> None:
        for stage in self._stages.values():
            counted = stage.counted()
            stage.keep()
            if counted != stage.played:
                raise PlayError(f"the door counted {counted} verdicts, {stage.played} flows were played")


def _flight(probe: Raw, prepared: Prepared, door: Door) -> Flight | str:
    """The probe's way, or why it does not fit this door."""
    if probe.get("protocol") != "TCP":
        return "not TCP"
    for name in ("dns", "kafka"):
        if name in probe:
            return f"no {name} at this door"
    if door == Door.EXT_PROC and "http" not in probe:
        return "no requests, which are all that ext-proc sees"
    if {"sni", "http", "outcome"} <= probe.keys():
        return "a filter of requests answers them, and resets no connection for its name"
    if "sni" in probe and "http" in probe and shutil.which("openssl") is None:
        return "openssl is missing: no certificate to end TLS with"
    if probe.get("auth"):
        return "no mutual authentication at this door"
    addresses = prepared.built.addresses
    source, target = addresses[probe["from"]], addresses[probe["to"]]
    pairs = [(one, other) for one in source for other in target if (":" in one) == (":" in other)]
    if not pairs:
        return "the ends have no address family in common"
    is_http = "http" in probe or ("sni" not in probe and speaks_http(prepared.built.world.policies, probe["port"]))
    mode = Mode.HTTP if is_http else Mode.TCP
    return Flight(probe, (mode, Direction(probe["dir"]), _wire(probe)), pairs[0][0], (pairs[0][1], probe["port"]))


def _wire(probe: Raw) -> Wire:
    if "sni" not in probe:
        return Wire.CLEAR
    return Wire.ENDED if "http" in probe else Wire.PASSED


def speaks_http(policies: Iterable[Policy], port: int) -> bool:
    """True if some policy filters requests at this port: there a listener for requests has to stand."""
    return any(
        spec.name is not None or not spec.port or spec.port <= port <= spec.last_port
        for policy in policies
        for rule in policy.rules
        for entry in rule.entries
        for port_rule in entry.to_ports or ()
        if port_rule.rules is not None and port_rule.rules.http
        for spec in port_rule.ports
    )


def _fly(flight: Flight, stage: Stage) -> Outcome:
    """One connection, one verdict."""
    if stage.mode == Mode.TCP:
        return _connection(flight, stage)
    return _request(flight, flight.probe["http"], stage) if "http" in flight.probe else _bare(flight, stage)


def _connection(flight: Flight, stage: Stage) -> Outcome:
    """Judged by the network filter alone, which closes what should be handed to a proxy (180)."""
    name = flight.probe.get("sni")
    first = PING if name is None else client_hello(name)
    seen = talk(stage.namespace, flight.source, flight.place, first)
    record = stage.record(seen.name)
    drop = None if seen.through else _drop(record)
    if drop == PROXY_UNSUPPORTED and name is not None:
        # The name passed; whether the connection is of use, the requests behind it say, which nobody here reads.
        return Outcome(skipped="requests behind the name are judged too, which takes a listener of requests")
    if drop == PROXY_UNSUPPORTED:
        return Outcome(_checked({"expect": "redirect"}, seen, record), entry=_entry(record))
    got: Raw = {"expect": "allow" if seen.through else "deny"} | ({"drop": drop} if drop else {})
    if name is not None:
        got |= {"at": record.get("at")} | ({"outcome": seen.outcome} if seen.outcome else {})
    return Outcome(_checked(got, seen, record), entry=_entry(record))


def _bare(flight: Flight, stage: Stage) -> Outcome:
    """A connection to a listener of requests: any request shows whether it was handed to the proxy."""
    outcome = _request(flight, _ANY_REQUEST, stage)
    got = outcome.got or {}
    if got.get("at") == "proxy" and "door" not in got:
        return replace(outcome, got={"expect": "redirect"})
    return replace(outcome, got={key: value for key, value in got.items() if key in ("expect", "drop", "door")})


def _request(flight: Flight, http: Raw, stage: Stage) -> Outcome:
    name = flight.probe.get("sni")
    seen = request(stage.namespace, flight.source, flight.place, http, name)
    if seen.location:
        http = {**http, "path": _path_of(seen.location)}
        seen = request(stage.namespace, flight.source, flight.place, http, name)
    record = stage.record(seen.name)
    got: Raw = {"expect": "allow" if seen.through else "deny", "at": record.get("at")}
    if not seen.through:
        got |= {"status": seen.status} if seen.status else {"outcome": "connection reset"}
        if record.get("at") == "l4":
            got["drop"] = _drop(record)
    elif changes := changed(http, seen.headers):
        got["upstream_headers"] = changes
    return Outcome(_checked(got, seen, record), entry=_entry(record))


def _path_of(location: str) -> str:
    """A location without scheme and authority."""
    parts = urlsplit(location)
    return parts.path + (f"?{parts.query}" if parts.query else "")


def _checked(got: Raw, seen: Seen, record: Mapping[str, Any]) -> Raw:
    """Client and door must tell the same story."""
    passed = record.get("verdict") in ("FORWARDED", "AUDIT", "REDIRECTED")
    if passed != seen.through:
        got["door"] = {"verdict": record.get("verdict"), "revision": record.get("revision")}
        got["expect"] = "client and door disagree"
    return got


def _drop(record: Mapping[str, Any]) -> int | None:
    return int(record["drop"]) if record.get("drop") else None


def _entry(record: Mapping[str, Any]) -> str | None:
    return f"{record['policy']} ({record['rule']})" if record.get("rule") else None
