# SPDX-License-Identifier: Apache-2.0
"""
What the semantic half of the compiler (resolve, merge) hands to the packing half (pack): one subject's policy
as merged entries, in terms of selectors, still without indexes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ext_authz.engine.types import L7, Auth, EntryVerdict, Mismatch
from ext_authz.model.types import KafkaRule, Tier

if TYPE_CHECKING:
    from ext_authz.identity.selectors import Selector


# IP protocols by the names that policies and pods write.
PROTOCOLS: Mapping[str, int] = {
    "ICMP": 1,
    "IGMP": 2,
    "IPIP": 4,
    "TCP": 6,
    "UDP": 17,
    "IPV6": 41,
    "GRE": 47,
    "ESP": 50,
    "AH": 51,
    "ICMPV6": 58,
    "VRRP": 112,
    "SCTP": 132,
}


@dataclass(frozen=True, slots=True)
class RuleOrigin:
    """Where an entry or an HTTP rule was written; one struct idm_rule."""

    kind: str
    namespace: str
    name: str
    file: str
    line: int
    column: int
    path: str
    index: int
    log: str = ""


@dataclass(frozen=True, slots=True)
class HeaderPredicate:
    """name lower case. present: only presence counts. never: the value is missing."""

    name: str
    value: str
    present: bool = False
    mismatch: Mismatch = Mismatch.FAIL
    secret: bool = False
    never: bool = False


@dataclass(frozen=True, slots=True)
class HttpMatch:
    """One HTTP rule, secrets resolved. Texts are RE2 expressions; empty means any."""

    method: str
    path: str
    host: str
    headers: tuple[HeaderPredicate, ...]
    origin: RuleOrigin


@dataclass(frozen=True, slots=True)
class KafkaMatch:
    rule: KafkaRule
    origin: RuleOrigin


@dataclass(frozen=True, slots=True)
class MergedEntry:
    """
    One entry after merging everything of equal selector, port key, tier and priority.

    selector None: any peer. protocol is an IP protocol number, 0 means all traffic. Numeric ports: first_port and
    last_port, 0 and 65535 for all ports. Named: port_name not empty, first_port 0, last_port 0 or the end of the range.
    l7 says the kind of redirect; the list of that kind is None where all requests pass (but the flow is proxied).
    dns holds RE2 expressions over lower-case names with trailing dot; sni RE2 expressions over lower-case names
    without trailing dot (both translated from Cilium's patterns).
    """

    selector: Selector | None
    protocol: int
    first_port: int
    last_port: int
    port_name: str
    verdict: EntryVerdict
    tier: Tier
    priority: int
    origins: tuple[RuleOrigin, ...]
    l7: L7 = L7.NONE
    redirect_priority: int = 0  # listener priority: 1-100, HTTP 101, Kafka 106, other 111, SNI 116, DNS 121, 126
    http: tuple[HttpMatch, ...] | None = None
    dns: tuple[str, ...] | None = None
    kafka: tuple[KafkaMatch, ...] | None = None
    sni: tuple[str, ...] | None = None
    auth: Auth = Auth.UNSET
    listener: str = ""
    terminates_tls: bool = False
    synthetic: bool = False
    audit: bool = False

    @property
    def precedence(self) -> int:
        """The number that decides between entries: struct idm_entry.precedence."""
        low = {
            EntryVerdict.DENY: 255,
            EntryVerdict.ALLOW: 1,
            EntryVerdict.PASS: 0,
        }.get(self.verdict, 254 - self.redirect_priority)
        return (0xFFFFFF - (int(self.tier) << 22 | self.priority)) << 8 | low

    @property
    def exact_port(self) -> bool:
        """One port or a plain name: what the DNS proxy looks at."""
        if self.port_name:
            return self.last_port == 0
        return self.protocol != 0 and self.first_port == self.last_port


class SidePolicy(NamedTuple):
    """One direction of one subject. Not enforced: everything passes and entries are empty."""

    enforced: bool
    entries: tuple[MergedEntry, ...] = ()
    audit: bool = False
    isolated: bool = False


class SideDifference(NamedTuple):
    """A side holds what another one holds, but for these entries (the objects themselves)."""

    side: SidePolicy
    before: SidePolicy
    gone: tuple[MergedEntry, ...]
    new: tuple[MergedEntry, ...]


class SubjectPolicy(NamedTuple):
    """The policy of every endpoint with one label set."""

    ingress: SidePolicy
    egress: SidePolicy
