# SPDX-License-Identifier: Apache-2.0
"""
One entry out of all that say something about the same selector and port key.

Atoms are entries before merging, with what only merging looks at. Everything here gives the same answer in either
order, and where Cilium's answer depends on the order, both orders are refused.

Source: reference policy-semantics sections 9 and 10.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from ext_authz.compiler.entries import L7, Auth, EntryVerdict, HttpMatch, KafkaMatch, MergedEntry, RuleOrigin
from ext_authz.compiler.l7rules import http_key, match_all
from ext_authz.model.types import ListenerRef, ObjectRef, Origin, PolicyError, TlsContext


class Parser(Enum):
    """What reads a redirected flow; the value is its redirect priority (listeners bring their own)."""

    PLAIN = 0
    TLS = 116
    HTTP = 101
    KAFKA = 106
    OTHER = 111
    DNS = 121
    LISTENER = 126


_L7 = {
    Parser.PLAIN: L7.NONE,
    Parser.TLS: L7.NONE,
    Parser.HTTP: L7.HTTP,
    Parser.KAFKA: L7.KAFKA,
    Parser.OTHER: L7.OTHER,
    Parser.DNS: L7.DNS,
    Parser.LISTENER: L7.LISTENER,
}


class Key(NamedTuple):
    """Atoms with equal keys merge. A plain allow and a redirect share one; a deny never merges with an allow."""

    selector: str
    protocol: int
    first_port: int
    last_port: int
    port_name: str
    verdict: str
    tier: int
    priority: int


class Conflict(Exception):
    """Two atoms that cannot hold together; the message says what disagrees."""


@dataclass(frozen=True, slots=True, eq=False)
class Atom:
    """
    One entry and what is not in it any more: the parser, TLS contexts, listeners and l7 protocol name.

    listeners: all that were merged; the one of the lowest priority number acts. bare_sni, bare_rules: some part has
    server names, or L7 rules, without terminatingTLS of its own.
    """

    entry: MergedEntry
    parser: Parser = Parser.PLAIN
    terminating: TlsContext | None = None
    originating: TlsContext | None = None
    listeners: frozenset[ListenerRef] = frozenset()
    l7proto: str = ""
    bare_sni: bool = False
    bare_rules: bool = False


def has_rules(parser: Parser) -> bool:
    """True for parsers that come with L7 rules."""
    return parser in (Parser.HTTP, Parser.KAFKA, Parser.OTHER, Parser.DNS)


def l7_of(parser: Parser) -> L7:
    return _L7[parser]


def merge(left: Atom, right: Atom) -> Atom:
    """Both atoms as one. Raises Conflict."""
    if left is right:
        return left
    origins = tuple(dict.fromkeys((*left.entry.origins, *right.entry.origins)))
    if left.entry.verdict in (EntryVerdict.DENY, EntryVerdict.PASS):
        return replace(left, entry=replace(left.entry, origins=origins))
    chosen = _parser(left, right)
    listeners = _listeners(left.listeners | right.listeners)
    listener = min(listeners, key=lambda item: item.priority, default=None)
    l7proto = _l7proto(left.l7proto, right.l7proto)
    terminating = _one(left.terminating, right.terminating, "terminating TLS contexts")
    originating = _one(left.originating, right.originating, "originating TLS contexts")
    sni = _union(left.entry.sni, right.entry.sni)
    bare_sni, bare_rules = left.bare_sni or right.bare_sni, left.bare_rules or right.bare_rules
    # Judged by the parts, not by the sum: a third rule with TLS must not decide by when it is merged.
    if bare_sni and bare_rules:
        raise Conflict("server names and L7 rules for the same peer and port need terminatingTLS")
    entry = replace(
        left.entry,
        origins=origins,
        verdict=EntryVerdict.ALLOW if chosen is Parser.PLAIN else EntryVerdict.REDIRECT,
        l7=_L7[chosen],
        redirect_priority=listener.priority if listener is not None else chosen.value,
        http=_http(left, right) if chosen is Parser.HTTP else None,
        dns=_dns(left, right) if chosen is Parser.DNS else None,
        kafka=_kafka(left, right) if chosen is Parser.KAFKA else None,
        sni=sni,
        auth=_auth(left.entry.auth, right.entry.auth),
        listener=listener_text(listener),
        terminates_tls=terminating is not None,
        synthetic=left.entry.synthetic and right.entry.synthetic,
    )
    return Atom(entry, chosen, terminating, originating, listeners, l7proto, bare_sni, bare_rules)


def _parser(left: Atom, right: Atom) -> Parser:
    pair = {left.parser, right.parser}
    if len(pair) == 1:
        return left.parser
    if Parser.PLAIN in pair:
        return (pair - {Parser.PLAIN}).pop()
    # TLS inspection alone gives way to what reads the stream, but neither a DNS proxy nor another's listener reads TLS.
    if Parser.TLS in pair and pair.isdisjoint((Parser.DNS, Parser.LISTENER)):
        return (pair - {Parser.TLS}).pop()
    first, second = (item.name.lower() for item in (left.parser, right.parser))
    raise Conflict(f"two L7 protocols, {first} and {second}, for the same peer and port")


def _listeners(listeners: frozenset[ListenerRef]) -> frozenset[ListenerRef]:
    by_priority: dict[int, ListenerRef] = {}
    for listener in sorted(listeners, key=listener_text):
        other = by_priority.setdefault(listener.priority, listener)
        if other != listener:
            raise Conflict(
                f"two listeners of priority {listener.priority}, {listener_text(other)} and "
                f"{listener_text(listener)}, for the same peer and port"
            )
    return listeners


def listener_text(listener: ListenerRef | None) -> str:
    """Names a listener in one word; empty for none."""
    return "" if listener is None else f"{listener.kind}/{listener.config}/{listener.name}"


def _l7proto(left: str, right: str) -> str:
    if left and right and left != right:
        raise Conflict(f"two L7 protocols, {left} and {right}, for the same peer and port")
    return left or right


def _one(left: TlsContext | None, right: TlsContext | None, what: str) -> TlsContext | None:
    if left is not None and right is not None and left != right:
        raise Conflict(f"different {what} for the same peer and port")
    return left or right


def _auth(left: Auth, right: Auth) -> Auth:
    if Auth.UNSET not in (left, right) and left is not right:
        words = [auth.name.lower().replace("_", "-") for auth in (left, right)]
        raise Conflict(f"two authentication modes, {words[0]} and {words[1]}, for the same peer and port")
    return max(left, right)


def _union(left: tuple[str, ...] | None, right: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if left is None or right is None:
        return left if right is None else right
    return tuple(dict.fromkeys((*left, *right)))


def _http(left: Atom, right: Atom) -> tuple[HttpMatch, ...]:
    """The rules of both; a side without rules allows every request."""
    found: dict[object, HttpMatch] = {}
    for atom in (left, right):
        for match in atom.entry.http if atom.entry.http is not None else (match_all(atom.entry.origins[0]),):
            found.setdefault(http_key(match), match)
    return tuple(found.values())


def _dns(left: Atom, right: Atom) -> tuple[str, ...] | None:
    if left.entry.dns is None or right.entry.dns is None:
        return None
    return _union(left.entry.dns, right.entry.dns)


def _kafka(left: Atom, right: Atom) -> tuple[KafkaMatch, ...] | None:
    if left.entry.kafka is None or right.entry.kafka is None:
        return None
    found = {match.rule: match for match in reversed((*left.entry.kafka, *right.entry.kafka))}
    return tuple(reversed(found.values()))


def opened(atom: Atom) -> Atom:
    """The same redirect with every request allowed: what a rule without default deny comes to."""
    entry = atom.entry
    match atom.parser:
        case Parser.HTTP:
            return replace(atom, entry=replace(entry, http=(*(entry.http or ()), match_all(entry.origins[0]))))
        case Parser.DNS:
            return replace(atom, entry=replace(entry, dns=None))
        case Parser.KAFKA:
            return replace(atom, entry=replace(entry, kafka=None))
    return atom


Atoms = dict[int, Atom]


class Merger:
    """
    Adds up atoms by key, and remembers merged pairs: the same pair meets in many subjects.

    errors get one PolicyError a conflict, told at the later of the two places.
    """

    def __init__(self) -> None:
        self._pairs: dict[tuple[Atom, Atom], Atom | str] = {}

    def add(self, target: Atoms, atoms: Atoms, errors: list[PolicyError]) -> None:
        """Add atoms into target. A conflict leaves the earlier atom and is told."""
        if target.keys().isdisjoint(atoms):
            target.update(atoms)
            return
        for key, atom in atoms.items():
            present = target.get(key)
            target[key] = atom if present is None else self.both(present, atom, errors)

    def both(self, left: Atom, right: Atom, errors: list[PolicyError]) -> Atom:
        found = self._pairs.get((left, right))
        if found is None:
            try:
                found = merge(left, right)
            except Conflict as conflict:
                found = str(conflict)
            self._pairs[left, right] = found
        if isinstance(found, str):
            errors.append(conflict_error(left, right, found))
            return left
        return found

    def forget(self) -> None:
        """Drop what is remembered, when most of it is of policies that are gone."""
        if len(self._pairs) > 100_000:
            self._pairs.clear()


def conflict_error(left: Atom, right: Atom, reason: str, severity: str = "error") -> PolicyError:
    """Names both places; the error stands at the second."""
    first, second = left.entry.origins[-1], right.entry.origins[-1]
    where = f"{first.kind} {first.namespace + '/' if first.namespace else ''}{first.name} {first.path}"
    return origin_error(second, f"{reason}; the other is {where} at {first.file}:{first.line}", severity)


def origin_error(origin: RuleOrigin, reason: str, severity: str = "error") -> PolicyError:
    return PolicyError(
        Origin(origin.file, origin.line, origin.column),
        ObjectRef(origin.kind, origin.namespace, origin.name),
        origin.path,
        reason,
        severity,
    )


def unique_errors(errors: Iterable[PolicyError]) -> tuple[PolicyError, ...]:
    """Each error once, by place."""
    found = {(error.origin, error.ref, error.field, error.reason, error.severity): error for error in errors}
    return tuple(sorted(found.values(), key=lambda item: (item.origin.file, item.origin.line, item.origin.column)))
