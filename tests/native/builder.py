# SPDX-License-Identifier: Apache-2.0
"""
Small worlds for tests of the engine, each a snapshot with named entries.

Subjects are 1000 (endpoint default/server, 10.0.0.1), 1001 and 1002 (default/a, default/b); 1001 carries app=a, 1002
app=b, 2 is the world, 1 the host. Selectors: a, b, and "pods" (a and b).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from ipaddress import ip_address
from typing import Any

from ext_authz.compiler.entries import (
    L7,
    Auth,
    EntryVerdict,
    HeaderPredicate,
    HttpMatch,
    KafkaMatch,
    MergedEntry,
    RuleOrigin,
    SidePolicy,
    SubjectPolicy,
)
from ext_authz.compiler.pack import pack
from ext_authz.compiler.resolved import EndpointRow, HostRow, IdentityRow, RangeRow, Resolved
from ext_authz.identity.labels import Label
from ext_authz.identity.selectors import Selector, from_label
from ext_authz.model.types import KafkaRule, NamedPort, Tier

TCP, UDP, ICMP, SCTP = 6, 17, 1, 132
SERVER, A, B, WORLD, HOST = 1000, 1001, 1002, 2, 1
DOMAIN = 7
OPEN = SidePolicy(enforced=False)
NAMES = (NamedPort("web", 80, "TCP"), NamedPort("http", 8080, "TCP"), NamedPort("dns", 53, "UDP"))
SELECTORS = tuple(sorted((from_label(Label("k8s", "app", name)) for name in ("a", "b", "pods")), key=lambda s: s.text))
_MEMBERS = {A: ("a", "pods"), B: ("b", "pods")}


def selector(name: str) -> Selector:
    return from_label(Label("k8s", "app", name))


def origin(path: str = "spec.ingress[0]") -> RuleOrigin:
    return RuleOrigin("CiliumNetworkPolicy", "default", "p", "p.yaml", 7, 3, path, 0)


def allow(peer: str | None = None, port: int | str | None = 80, last: int | None = None, **fields: Any) -> MergedEntry:
    """
    An allow, but for the fields given. port: a number, a name, or None for all traffic.

    `protocol` with port=0 and last=65535 is all ports of one protocol.
    """
    named = port if isinstance(port, str) else ""
    first = port if isinstance(port, int) else 0
    known: dict[str, Any] = {
        "selector": None if peer is None else selector(peer),
        "protocol": 0 if port is None else TCP,
        "first_port": first,
        "last_port": (65535 if port is None else 0 if named else first) if last is None else last,
        "port_name": named,
        "verdict": EntryVerdict.ALLOW,
        "tier": Tier.NORMAL,
        "priority": 0,
        "origins": (origin(),),
    }
    return MergedEntry(**(known | fields))


def deny(*where: Any, **fields: Any) -> MergedEntry:
    return allow(*where, verdict=EntryVerdict.DENY, **fields)


def skip(*where: Any, **fields: Any) -> MergedEntry:
    """A pass entry."""
    return allow(*where, verdict=EntryVerdict.PASS, **fields)


def redirect(*where: Any, l7: L7, priority: int, **fields: Any) -> MergedEntry:
    return allow(*where, verdict=EntryVerdict.REDIRECT, l7=l7, redirect_priority=priority, **fields)


def http(*where: Any, rules: Sequence[HttpMatch] | None, **fields: Any) -> MergedEntry:
    rules = None if rules is None else tuple(rules)
    return redirect(*where, l7=L7.HTTP, priority=101, http=rules, **fields)


def dns(*where: Any, names: Sequence[str] | None, **fields: Any) -> MergedEntry:
    """names: expressions over lower-case names with trailing dot."""
    patterns = None if names is None else tuple(names)
    return redirect(*where, l7=L7.DNS, priority=121, dns=patterns, **({"protocol": UDP} | fields))


def sni(*where: Any, names: Sequence[str], **fields: Any) -> MergedEntry:
    """names: expressions over lower-case names without trailing dot."""
    return redirect(*where, l7=L7.NONE, priority=116, sni=tuple(names), **fields)


def kafka(*where: Any, rules: Sequence[KafkaRule] | None, **fields: Any) -> MergedEntry:
    matches = None if rules is None else tuple(KafkaMatch(rule, origin()) for rule in rules)
    return redirect(*where, l7=L7.KAFKA, priority=106, kafka=matches, **fields)


def rule(path: str = "", method: str = "", host: str = "", headers: Sequence[HeaderPredicate] = ()) -> HttpMatch:
    return HttpMatch(method, path, host, tuple(headers), origin())


def header(name: str, value: str = "", **fields: Any) -> HeaderPredicate:
    return HeaderPredicate(name, value, **({"present": not value} | fields))


def side(*entries: MergedEntry, **fields: Any) -> SidePolicy:
    return SidePolicy(enforced=True, entries=entries, **fields)


def world(ingress: SidePolicy = OPEN, egress: SidePolicy = OPEN, **fields: Any) -> Resolved:
    """The world above, in which the server has these two sides and everyone else is open."""
    identities = (
        IdentityRow(HOST, ("reserved:host",)),
        IdentityRow(WORLD, ("reserved:world",), world=True),
        IdentityRow(SERVER, ("k8s:app=server",), NAMES),
        IdentityRow(A, ("k8s:app=a",), (NamedPort("http", 9090, "TCP"),)),
        IdentityRow(B, ("k8s:app=b",)),
        IdentityRow(16777217, ("cidr:203.0.113.0/24", "reserved:world"), world=True),
    )
    endpoints = (
        EndpointRow("default/server", SERVER, True, fields.pop("audit", False), NAMES),
        EndpointRow("default/a", A, True, False, (NamedPort("http", 9090, "TCP"),)),
        EndpointRow("default/b", B, False, False),
    )
    addresses = ((f"10.0.0.{i + 1}", item.identity, i) for i, item in enumerate(endpoints))
    hosts = [HostRow(ip_address(text), identity, index) for text, identity, index in addresses]
    hosts.append(HostRow(ip_address("fd00::1"), SERVER, 0))
    hosts.append(HostRow(ip_address("192.168.1.1"), HOST))
    numbers = {item: number for number, item in enumerate(SELECTORS)}
    known: dict[str, Any] = {
        "domain": DOMAIN,
        "world4": WORLD,
        "world6": WORLD,
        "identities": identities,
        "endpoints": endpoints,
        "hosts": tuple(hosts),
        "ranges4": (RangeRow(0, WORLD), RangeRow(0xCB007100, 16777217), RangeRow(0xCB007200, WORLD)),
        "ranges6": (RangeRow(0, WORLD),),
        "selectors": SELECTORS,
        "selector_numbers": numbers,
        "membership": {
            identity: tuple(sorted(numbers[selector(name)] for name in names)) for identity, names in _MEMBERS.items()
        },
        "subjects": {
            SERVER: SubjectPolicy(ingress, egress),
            A: SubjectPolicy(OPEN, OPEN),
            B: SubjectPolicy(OPEN, OPEN),
        },
    }
    return Resolved(**(known | fields))


def packed(resolved: Resolved, revision: int = 1) -> bytes:
    """The snapshot's bytes; a policy that the packer had to leave out is a mistake of the test."""
    made = pack(resolved, revision=revision)
    assert not made.errors, made.errors[0].reason
    return made.snapshot


def snapshot(*entries: MergedEntry, revision: int = 1, **fields: Any) -> bytes:
    """The snapshot in which the server's ingress has these entries."""
    return packed(world(side(*entries, **fields)), revision)


def _http_world() -> Resolved:
    act = [header("x-env", "prod", mismatch=kind) for kind in (1, 2, 3, 4)]
    return world(
        side(
            http(
                "a", 80, rules=[rule("/a/.*", "GET"), rule("/v1/.*", "GET|POST", headers=[header("x-token", "secret")])]
            ),
            http("b", 80, rules=[rule("/api/v[0-9]+/users/[0-9a-f-]+/orders(/.*)?"), rule(host="a\\.example")]),
            http("pods", 8080, rules=[rule("/a/.*", headers=[item]) for item in act]),
            http("pods", "web", rules=[rule("/x.*", headers=[header("x-env")])]),
            allow("b", 80, last=90),
        ),
        side(http(None, "http", rules=None), allow("a", None)),
    )


def _l7_world() -> Resolved:
    topics = [
        KafkaRule(frozenset({0, 3, 18}), 1, "c1", "foo"),
        KafkaRule(None, -1, "", "bar"),
        KafkaRule(frozenset({1})),
    ]
    return world(
        side(
            kafka("a", 9092, rules=topics[:2]),
            kafka("pods", 9092, rules=topics[2:]),
            redirect("a", 1234, l7=L7.OTHER, priority=111),
            redirect("b", 1234, l7=L7.LISTENER, priority=126, listener="mine"),
        ),
        side(
            dns("a", 53, names=["www\\.example\\.com\\."]),
            dns("b", 53, names=None),
            sni("a", 443, names=["[a-z]+\\.example\\.com"]),
            http("b", 443, rules=[rule("/a/.*")], sni=("www\\.example\\.com",), terminates_tls=True),
        ),
    )


def _tier_world() -> Resolved:
    return world(
        side(
            skip("a", 80, tier=Tier.ADMIN, priority=5),
            deny("pods", None, tier=Tier.ADMIN, priority=9),
            allow("a", 0, last=65535, auth=Auth.REQUIRED),
            allow("a", 80),
            deny(None, None, tier=Tier.BASELINE, audit=True),
            allow("pods", 8, protocol=ICMP),
            allow(None, 1000, last=2000, protocol=SCTP, auth=Auth.ALWAYS_FAIL),
            allow("pods", "http", last=8090),
        ),
        side(isolated=True),
        audit=True,
    )


WORLDS: dict[str, Callable[[], Resolved]] = {
    "empty": lambda: world(side(), side()),
    "http": _http_world,
    "l7": _l7_world,
    "tiers": _tier_world,
}


@cache
def build(name: str) -> bytes:
    """One of WORLDS."""
    return packed(WORLDS[name](), revision=3)
