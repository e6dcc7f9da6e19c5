# SPDX-License-Identifier: Apache-2.0
"""A flow as the engine is asked about it, and its verdict."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from ext_authz.engine._engine import lib

NONE: int = lib.IDM_NONE


class SnapshotError(Exception):
    """The snapshot was refused; the message says which table, section and item, and why."""


class Direction(IntEnum):
    INGRESS = lib.IDM_INGRESS
    EGRESS = lib.IDM_EGRESS


class VerdictCode(IntEnum):
    """Hubble's numbers."""

    FORWARDED = lib.IDM_FORWARDED
    DROPPED = lib.IDM_DROPPED
    AUDIT = lib.IDM_AUDIT
    REDIRECTED = lib.IDM_REDIRECTED


class EntryVerdict(IntEnum):
    """What a compiled entry says, before anything is known of the flow."""

    PASS = lib.IDM_ENTRY_PASS
    ALLOW = lib.IDM_ENTRY_ALLOW
    REDIRECT = lib.IDM_ENTRY_REDIRECT
    DENY = lib.IDM_ENTRY_DENY


class At(IntEnum):
    """Where the final answer was found; NONE without request facts."""

    NONE = lib.IDM_AT_NONE
    L4 = lib.IDM_AT_L4
    PROXY = lib.IDM_AT_PROXY
    DIRECT = lib.IDM_AT_DIRECT


class Stage(IntEnum):
    """What dropped a flow."""

    NONE = lib.IDM_STAGE_NONE
    L4 = lib.IDM_STAGE_L4
    SNI = lib.IDM_STAGE_SNI
    HTTP = lib.IDM_STAGE_HTTP
    PATH = lib.IDM_STAGE_PATH
    CHANGES = lib.IDM_STAGE_CHANGES
    DNS = lib.IDM_STAGE_DNS
    KAFKA = lib.IDM_STAGE_KAFKA
    PARSER = lib.IDM_STAGE_PARSER
    KIND = lib.IDM_STAGE_KIND


class Auth(IntEnum):
    UNSET = lib.IDM_AUTH_UNSET
    DISABLED = lib.IDM_AUTH_DISABLED
    REQUIRED = lib.IDM_AUTH_REQUIRED
    ALWAYS_FAIL = lib.IDM_AUTH_ALWAYS_FAIL


class L7(IntEnum):
    NONE = lib.IDM_L7_NONE
    HTTP = lib.IDM_L7_HTTP
    DNS = lib.IDM_L7_DNS
    KAFKA = lib.IDM_L7_KAFKA
    OTHER = lib.IDM_L7_OTHER
    LISTENER = lib.IDM_L7_LISTENER


class Evidence(IntFlag):
    """What the peer's identity rests on."""

    NONE = 0
    ADDRESS = lib.IDM_EVIDENCE_ADDRESS
    DATAPATH = lib.IDM_EVIDENCE_DATAPATH
    CERTIFICATE = lib.IDM_EVIDENCE_CERTIFICATE


class Mismatch(IntEnum):
    """What an HTTP rule does about a header condition that does not hold."""

    FAIL = lib.IDM_MISMATCH_FAIL
    LOG = lib.IDM_MISMATCH_LOG
    ADD = lib.IDM_MISMATCH_ADD
    DELETE = lib.IDM_MISMATCH_DELETE
    REPLACE = lib.IDM_MISMATCH_REPLACE


class ChangeAction(IntEnum):
    LOG = lib.IDM_MISMATCH_LOG
    ADD = lib.IDM_MISMATCH_ADD
    DELETE = lib.IDM_MISMATCH_DELETE
    REPLACE = lib.IDM_MISMATCH_REPLACE


class Consider(IntEnum):
    """Why an entry of the subject's side did not decide, or that it did."""

    WON = lib.IDM_CONSIDER_WON
    MATCHED = lib.IDM_CONSIDER_MATCHED
    PEER = lib.IDM_CONSIDER_PEER
    PROTOCOL = lib.IDM_CONSIDER_PROTOCOL
    PORT = lib.IDM_CONSIDER_PORT
    PORT_NAME = lib.IDM_CONSIDER_PORT_NAME
    L7 = lib.IDM_CONSIDER_L7
    SNI = lib.IDM_CONSIDER_SNI
    PASSED_OVER = lib.IDM_CONSIDER_PASSED_OVER


@dataclass(frozen=True, slots=True)
class Http:
    """Facts of an HTTP request. path with query; headers without pseudo headers, names in any case."""

    method: str = "GET"
    path: str = "/"
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Kafka:
    api_key: int
    api_version: int
    client_id: str = ""
    topics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Flow:
    """
    One connection or request, asked about on one side.

    subject: whose policy decides: "namespace/name", an address, or an endpoint's index; subject_identity instead of
    it asks about an identity. peer: identity number, or an address, which is resolved. sni: "" is known and empty.
    raw_path: bring the path into canonical form first. enforce_auth: drop (189) what demands authentication that
    evidence does not give; expiry_ms and now_ms are unix times.
    """

    direction: Direction
    peer: int | str
    protocol: int
    port: int
    subject: int | str | None = None
    subject_identity: int | None = None
    evidence: int = Evidence.ADDRESS
    http: Http | None = None
    dns: str | None = None
    sni: str | None = None
    kafka: Kafka | None = None
    raw_path: bool = False
    enforce_auth: bool = False
    peer_domain: int = 0
    expiry_ms: int = 0
    now_ms: int = 0


@dataclass(frozen=True, slots=True)
class HeaderChange:
    """secret: the value came from a Secret and must not be shown; its repr does not."""

    action: ChangeAction
    name: str
    value: str
    secret: bool = False

    def __repr__(self) -> str:
        value = "[redacted]" if self.secret else self.value
        return f"HeaderChange({self.action.name}, {self.name!r}, {value!r})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    The answer. verdict is the final one where the flow had request facts, else that of L3/L4.

    entry, l4_entry, http_rule: indexes in the snapshot's tables, or None. drop_reason is Hubble's number, also kept
    where audit let the flow pass.
    """

    verdict: VerdictCode
    at: At
    auth: Auth
    l7: L7
    match_type: int
    l4_verdict: VerdictCode
    drop_reason: int
    entry: int | None
    l4_entry: int | None
    http_rule: int | None
    dropped_by: Stage
    revision: int
    changes: tuple[HeaderChange, ...] = ()

    @property
    def passes(self) -> bool:
        """False if the flow is dropped. True does not mean that a redirected flow may go without its proxy."""
        return self.verdict != VerdictCode.DROPPED


@dataclass(frozen=True, slots=True)
class Considered:
    entry: int
    reason: Consider


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict and every entry of the subject's side with what kept it from deciding."""

    verdict: Verdict
    considered: tuple[Considered, ...]
