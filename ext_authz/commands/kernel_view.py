# SPDX-License-Identifier: Apache-2.0
"""The kernel's own tables for people: numbers of the maps get the names of the snapshot that they were filled from."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ext_authz.cli import Failure
from ext_authz.commands.tables import Directory, print_rows
from ext_authz.datapath.view import Connection, Live, Place, Side, Span, View
from ext_authz.engine.dump import load
from ext_authz.engine.engine import Engine
from ext_authz.engine.layout import NONE
from ext_authz.engine.types import L7, SnapshotError, VerdictCode
from ext_authz.flow.names import Identities, Policies
from ext_authz.flow.shape import DROP_REASONS
from ext_authz.identity.reserved import NAMES
from ext_authz.logs import escape
from ext_authz.state import State, read_owned

_PROTOCOLS = {0: "ANY", 1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}
_RESERVED = {number: name for name, number in NAMES.items()}
_ICMP = (1, 58)
_CONNECTIONS = ("SOURCE", "DESTINATION", "PROTOCOL", "VERDICT", "JUDGED", "STATE", "IDLE", "REVISION")
# Labels that say nothing new beside the others.
_COMPUTED = ("k8s:io.cilium.k8s.namespace.labels.", "k8s:io.cilium.k8s.policy.")


class _Named:
    """Names of one revision; of another one nothing is known but numbers."""

    def __init__(self, state: State, revision: int) -> None:
        self.directory: Directory | None = None
        self._policies: Policies | None = None
        self._identities: Identities | None = None
        try:
            data = read_owned(state.snapshot)
            engine = Engine.open(data)
            self.directory = Directory(load(data))
        except (OSError, SnapshotError):
            return
        self.fits = engine.revision == revision
        if self.fits:
            self._policies, self._identities = Policies(engine), Identities(engine)

    fits = False

    def rule(self, entry: int | None) -> str:
        """FILE:LINE of an entry, or nothing."""
        if entry is None or self._policies is None:
            return ""
        return next((rule.place for rule in self._policies.rules(entry, NONE)), "")

    def identity(self, number: int) -> str:
        if number in _RESERVED:
            return _RESERVED[number]
        labels = self._identities.labels(number) if self._identities else None
        shown = [text for text in labels.texts if not text.startswith(_COMPUTED)] if labels else []
        return " ".join([str(number), *shown])

    def addresses(self, name: str) -> list[str]:
        """Of an endpoint, by name or address."""
        try:
            return [str(ipaddress.ip_address(name))]
        except ValueError:
            pass
        for endpoint in self.directory.endpoints if self.directory else ():
            if endpoint["name"] == name:
                return list(endpoint["addresses"])
        return []


def _open(state: State) -> tuple[View, Live]:
    view = View(Path(state.datapath_pins / "live"))
    try:
        return view, view.live()
    except PermissionError:
        raise Failure(f"{state.datapath_pins}: only root may look") from None
    except OSError:
        raise Failure(f"nothing stands in the kernel for {state.root}") from None


def show_policy(state: State, name: str, as_json: bool) -> int:
    """
    Raises:
        Failure: There is no such endpoint, or nothing in the kernel.
    """
    view, live = _open(state)
    names = _Named(state, live.revision)
    addresses = names.addresses(name)
    if not addresses:
        raise Failure(escape(f"{name}: no endpoint of that name in the snapshot"))
    places = [place for address in addresses if (place := view.place(live, address))]
    if not places:
        raise Failure(escape(f"{name}: the kernel does not know {' '.join(addresses)}"))
    sides = view.sides(live, places[0].policy) if places[0].policy is not None else ()
    if as_json:
        print(json.dumps(_policy_record(name, live, places, sides, names)))
    else:
        _print_policy(name, live, places, sides, names)
    return 0


def _policy_record(
    name: str, live: Live, places: list[Place], sides: tuple[Side, ...], names: _Named
) -> dict[str, Any]:
    return {
        "endpoint": name,
        "revision": live.revision,
        "generation": live.generation,
        "closed": live.closed,
        "places": [asdict(place) for place in places],
        "sides": [
            {
                "direction": side.direction.name.lower(),
                "open": side.open,
                "isolated": side.isolated,
                "otherwise": {"verdict": side.miss.name, "drop_reason": side.miss_drop},
                "entries": [_span_record(span, names) for span in side.spans],
            }
            for side in sides
        ],
    }


def _span_record(span: Span, names: _Named) -> dict[str, Any]:
    return {
        "peer": span.peer,
        "protocol": _protocol(span.protocol),
        "first_port": span.first_port,
        "last_port": span.last_port,
        "verdict": span.verdict.name,
        "drop_reason": span.drop_reason,
        "l7": L7(span.l7).name.lower() if span.l7 else "",
        "entry": span.entry,
        "rule": names.rule(span.entry),
    }


def _print_policy(name: str, live: Live, places: list[Place], sides: tuple[Side, ...], names: _Named) -> None:
    where = ", ".join(f"{p.address}{f' at interface {p.ifindex}' if p.ifindex else ''}" for p in places)
    print(escape(f"{name}: identity {names.identity(places[0].identity)}; {where}"))
    print(
        f"revision {live.revision}, generation {live.generation}" + (", closed: all is denied" if live.closed else "")
    )
    if not names.fits:
        print("the snapshot is of another revision: numbers stay numbers")
    if not sides:
        print("no policy of it is enforced on this host")
    for side in sides:
        print(f"\n{side.direction.name.lower()}: {_side(side)}")
        rows: list[tuple[str, ...]] = [("PEER", "PROTOCOL", "PORTS", "VERDICT", "RULE")]
        rows += [_row(span, names) for span in side.spans]
        if len(rows) > 1:
            print_rows(rows)


def _side(side: Side) -> str:
    if side.isolated:
        return "isolated, all is denied"
    if side.open:
        return "not enforced, all passes"
    return f"otherwise {_verdict(side.miss, side.miss_drop)}"


def _row(span: Span, names: _Named) -> tuple[str, ...]:
    peer = "any other" if span.peer is None else names.identity(span.peer)
    verdict = _verdict(span.verdict, span.drop_reason)
    verdict += f" {L7(span.l7).name.lower()}" if span.l7 else ""
    rule = names.rule(span.entry) or (f"entry {span.entry}" if span.entry is not None else "")
    return peer, _protocol(span.protocol), _ports(span), verdict, rule


def _verdict(verdict: VerdictCode, reason: int) -> str:
    if verdict in (VerdictCode.DROPPED, VerdictCode.AUDIT) and reason:
        return f"{verdict.name} {DROP_REASONS.get(reason, reason)}"
    return verdict.name


def _ports(span: Span) -> str:
    if (span.first_port, span.last_port) == (0, 65535):
        return "any"
    what = "type " if span.protocol in _ICMP else ""
    return f"{what}{span.first_port}" + (f"-{span.last_port}" if span.last_port != span.first_port else "")


def _protocol(number: int) -> str:
    return _PROTOCOLS.get(number, str(number))


def show_connections(state: State, as_json: bool) -> int:
    """
    Raises:
        Failure: Nothing is in the kernel.
    """
    view, live = _open(state)
    names = _Named(state, live.revision)
    rows: list[tuple[str, ...]] = [_CONNECTIONS]
    for one in sorted(view.connections(), key=lambda one: (one.source, one.source_port, one.destination, one.leg)):
        if as_json:
            print(json.dumps({**asdict(one), "protocol": _protocol(one.protocol), "verdict": one.verdict.name}))
        else:
            rows.append(_connection(one, names))
    if not as_json:
        print_rows(rows)
    return 0


def _connection(one: Connection, names: _Named) -> tuple[str, ...]:
    source = f"{_end(one.source, one.source_port)} ({names.identity(one.source_identity).split(' ')[0]})"
    target = names.identity(one.destination_identity).split(" ")[0]
    destination = f"{_end(one.destination, one.destination_port)} ({target})"
    protocol = _protocol(one.protocol) + (" by Envoy" if one.leg == "proxy" else "")
    idle = f"{one.idle_s} s"
    return source, destination, protocol, one.verdict.name, ",".join(one.judged), one.state, idle, str(one.revision)


def _end(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
