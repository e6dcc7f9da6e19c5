# SPDX-License-Identifier: Apache-2.0
"""What an Envoy is wanted for: the one input of the configuration generator, checked when it is made."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")


class SetupError(ValueError):
    """The wish makes no configuration; the message says which part."""


class Door(StrEnum):
    """Who decides. The last three are for comparison in benchmarks."""

    MODULE = "module"
    EXT_AUTHZ = "ext-authz"
    EXT_PROC = "ext-proc"
    NONE = "none"
    EMPTY = "empty"
    RBAC = "rbac"


class Mode(StrEnum):
    HTTP = "http"
    TCP = "tcp"


class Direction(StrEnum):
    INGRESS = "ingress"
    EGRESS = "egress"
    BOTH = "both"


class UpstreamHttp(StrEnum):
    """How the upstream is spoken to; `same`: as the client came."""

    HTTP1 = "http1"
    HTTP2 = "http2"
    SAME = "same"


class Evidence(StrEnum):
    """What a peer's identity may rest on."""

    ADDRESS = "address"
    DATAPATH = "datapath"
    CERTIFICATE = "certificate"


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM. ca: who signs the clients' certificates; needed where certificates say who connects."""

    certificate: Path
    key: Path
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """path: a unix socket; else host (an IP literal, or a DNS name for upstreams) and port."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """None for names and sockets."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def text(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_target(text: str) -> Target:
    """
    Read unix:PATH, HOST:PORT or [HOST]:PORT.

    Raises:
        SetupError: Malformed.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise SetupError(f"{text}: want an absolute path")
        return Target(path=path)
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not host or (":" in host and not bracketed):
        raise SetupError(f"{text}: want HOST:PORT, [HOST]:PORT or unix:PATH")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise SetupError(f"{text}: want a port from 0 to 65535")
    return Target(host="127.0.0.1" if host == "localhost" else host, port=int(port))


@dataclass(frozen=True, slots=True)
class Steering:
    """
    Connections come from the datapath of this host, each to its own destination.

    pins: the folder in which the datapath's maps are pinned.
    ip6: listen on ::1 too; needs a host with IPv6.
    """

    pins: Path
    ip6: bool = True


@dataclass(frozen=True, slots=True)
class RbacRule:
    """One rule of Envoy's own RBAC filter, for comparison. method empty: any; path: RE2, full match."""

    path: str
    method: str = ""


@dataclass(frozen=True, slots=True)
class Setup:
    """
    destination: "local", ADDRESS[:PORT] or NAMESPACE/NAME[:PORT]; whose policy judges what comes in here (for
    egress: the peer). Empty: the upstream's address and port, or "local" with the upstream's port where the
    upstream is this host's loopback and the listener is not (see `resolved_destination`).
    state: directory the module reads its snapshot from.
    module: absolute path of libidmesh_envoy.so.
    authz: addresses of the service's workers (ext-authz, ext-proc).
    authz_timeout_ms: how long an answer of theirs is waited for.
    listener_filter: the module's listener filter tells who connects; always so with the module door. Before ext-proc
    it is needed where source.address may be what X-Forwarded-For says.
    observe: ext-proc only looks on; it denies nothing.
    second_point: judge again on the chosen upstream host (module only).
    proxy_protocol_from: networks whose PROXY header is believed.
    sni: read the server name of TLS connections (delays server-first protocols).
    flow_ring_bytes: size of each Envoy worker's ring of flow records, 0 for none (module; empty: its default).
    access_log: path of a JSON access log, with the decision in it.
    trust_domain: the SPIFFE trust domain whose certificates say who connects.
    require: evidence of the peer that must be there.
    address_ignored: peers come through others' addresses, so only certificates tell who they are.
    steering: the datapath steers connections here and tells of whom they are: HTTP, TCP and TLS at one listener, on
        loopback. No upstreams, destination, direction or mode: each connection has its own.
    """

    door: Door
    listen: Target
    upstreams: tuple[Target, ...]
    mode: Mode = Mode.HTTP
    direction: Direction = Direction.INGRESS
    destination: str = ""
    state: Path | None = None
    module: Path | None = None
    authz: tuple[Target, ...] = ()
    authz_timeout_ms: int = 2000
    admin: Target | None = None
    listener_filter: bool = False
    observe: bool = False
    use_remote_address: bool = True
    trusted_hops: int = 0
    upstream_http: UpstreamHttp = UpstreamHttp.HTTP1
    second_point: bool = False
    proxy_protocol_from: tuple[str, ...] = ()
    original_dst: bool = False
    sni: bool = False
    body: str = ""
    metadata: str = ""
    access_log: str = ""
    flow_ring_bytes: int | None = None
    tls: Tls | None = None
    trust_domain: str = ""
    require: tuple[Evidence, ...] = ()
    address_ignored: bool = False
    rbac: tuple[RbacRule, ...] = ()
    steering: Steering | None = None

    def __post_init__(self) -> None:
        for problem in self._problems():
            if problem:
                raise SetupError(problem)

    def _problems(self) -> list[str]:
        return [
            "" if self.upstreams or self.steering else "an upstream is needed",
            "" if self.listen.address else f"{self.listen.text}: the listener needs an IP address",
            "" if not self.asks_service or self.authz else f"the {self.door} door needs --grpc ADDR",
            "" if not self.loads_module or self.module else "the module's path is needed",
            "" if not self.has_bootstrap or self.state else f"{self._needs_state} needs the state directory",
            "" if not self.second_point or self.door == Door.MODULE else "only the module can judge a second time",
            # Envoy's own filter believes a PROXY header from anybody; the module asks the socket who sent it.
            ""
            if not self.proxy_protocol_from or self.has_bootstrap
            else "only the module can tell trusted proxies (--listener-filter puts it in front)",
            "" if self.flow_ring_bytes is None or self.has_bootstrap else "only the module has rings of its own",
            *self._ext_proc_problems(),
            *self._evidence_problems(),
            *self._steering_problems(),
        ]

    def _steering_problems(self) -> list[str]:
        if not self.steering:
            return []
        listen = self.listen.address
        foreign = self.upstreams or self.destination or self.proxy_protocol_from or self.original_dst or self.tls
        return [
            "" if self.door == Door.MODULE else "only the module can ask the datapath who connects",
            "" if not foreign else "steered connections bring their destination, and come through nothing else",
            "" if listen and str(listen) == "127.0.0.1" else "steered connections arrive at 127.0.0.1 (and ::1)",
            "" if not self.second_point else "steered connections go where the client wants: there is no second choice",
        ]

    def _evidence_problems(self) -> list[str]:
        verified = self.tls is not None and self.tls.ca is not None
        judges = self.asks_service or self.door == Door.MODULE
        return [
            "" if not self.trust_domain or _TRUST_DOMAIN.fullmatch(self.trust_domain) else "not a SPIFFE trust domain",
            # Without verification anybody could write the certificate that says who he is.
            "" if not self.trust_domain or verified else "a trust domain needs TLS with the CA of its certificates",
            "" if self.trust_domain or not verified else "a CA of clients' certificates needs their trust domain",
            "" if not self.trust_domain or judges else f"the {self.door} door reads no certificates",
            ""
            if self.trust_domain or Evidence.CERTIFICATE not in self.require
            else "certificates can be required only with a trust domain",
            "" if self.trust_domain or not self.address_ignored else "an ignored address needs a trust domain instead",
            ""
            if not (self.address_ignored and Evidence.ADDRESS in self.require)
            else "the address cannot be required and ignored",
        ]

    def _ext_proc_problems(self) -> list[str]:
        if self.door != Door.EXT_PROC:
            return ["only the ext-proc door can observe"] if self.observe else []
        forged = self.trusted_hops > 0 or not self.use_remote_address
        return [
            "the ext-proc door judges requests; for --mode tcp take module or ext-authz"
            if self.mode == Mode.TCP
            else "",
            "source.address would be what X-Forwarded-For says, which clients write: ext-proc needs use_remote_address "
            "and no trusted hops, or the module in front (--listener-filter)"
            if forged and not self.listener_filter
            else "",
        ]

    @property
    def asks_service(self) -> bool:
        return self.door in (Door.EXT_AUTHZ, Door.EXT_PROC)

    @property
    def has_bootstrap(self) -> bool:
        """True if the module's listener filter stands in front, which needs its bootstrap extension."""
        return self.door == Door.MODULE or self.listener_filter

    @property
    def _needs_state(self) -> str:
        return "the module door" if self.door == Door.MODULE else "the module's listener filter"

    @property
    def loads_module(self) -> bool:
        return self.has_bootstrap or self.door == Door.EMPTY

    @property
    def resolved_destination(self) -> tuple[str, int]:
        """
        Destination and the port that policies see (0: the destination's own).

        A listener need not stand on the workload's address. With an upstream elsewhere the workload is the
        upstream. With an upstream on loopback behind a listener that others reach, the workload is this host:
        then it is the address the client connected to, and the port the workload listens on.
        """
        if self.destination:
            return self.destination, 0
        if self.steering:
            return "local", 0
        first = self.upstreams[0]
        if not first.address:
            return "local", 0
        listen = self.listen.address
        if first.address.is_loopback and listen and not listen.is_loopback:
            return "local", first.port
        return first.text, 0
