# SPDX-License-Identifier: Apache-2.0
"""Writes examples/*.json and compose/envoy.json with the one generator. Run: python envoy/generate.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Direction, Door, Evidence, Mode, Setup, Target, Tls, UpstreamHttp

EXAMPLES = Path(__file__).resolve().parent / "examples"
COMPOSE = EXAMPLES.parent / "compose/envoy.json"
STATE = Path("/run/idmesh")
# With the version in it: Envoy goes on with the old file if a new one takes its place.
MODULE = Path("/usr/lib/idmesh/0.1.0/libidmesh_envoy.so")
_LISTEN, _UPSTREAM = Target(host="0.0.0.0", port=8080), Target(host="10.0.0.10", port=8080)
_ADMIN = Target(host="127.0.0.1", port=9901)
# What `idmesh run --workers 2` serves.
_WORKERS = (Target(path="/run/idmesh/authz.sock.0"), Target(path="/run/idmesh/authz.sock.1"))
_MTLS: dict[str, Any] = {
    "tls": Tls(*(Path("/etc/idmesh") / name for name in ("tls.crt", "tls.key", "ca.crt"))),
    "trust_domain": "cluster.local",
    "require": (Evidence.CERTIFICATE,),
}
_LOG = "/var/log/envoy/access.log"


def _setup(door: Door, **more: Any) -> Setup:
    own: dict[str, Any] = {"authz": _WORKERS} if door in (Door.EXT_AUTHZ, Door.EXT_PROC) else {}
    if door == Door.MODULE or more.get("listener_filter"):
        own |= {"module": MODULE, "state": STATE}
    return Setup(**{"door": door, "listen": _LISTEN, "upstreams": (_UPSTREAM,), "admin": _ADMIN, **own, **more})


def _module() -> dict[str, Setup]:
    door = Door.MODULE
    return {
        "module-http": _setup(door),
        "module-http-both-directions": _setup(door, direction=Direction.BOTH),
        # Around the workload: what it sends, judged by its own policy for where it goes.
        "module-http-egress": _setup(door, direction=Direction.EGRESS),
        # The workload is on this host, behind an Envoy that stands on its address.
        "module-http-local": _setup(door, upstreams=(Target(host="127.0.0.1", port=8080),)),
        "module-http-second-point": _setup(door, second_point=True),
        "module-http-forwarded-for": _setup(door, trusted_hops=1, access_log=_LOG),
        "module-http-proxy-protocol": _setup(door, proxy_protocol_from=("10.9.0.0/16",)),
        "module-http-redirected": _setup(door, original_dst=True, destination="local"),
        "module-http-flow-records": _setup(door, flow_ring_bytes=8 << 20),
        "module-http-no-flow-records": _setup(door, flow_ring_bytes=0),
        "module-http-mtls": _setup(door, **_MTLS),
        "module-grpc": _setup(door, upstream_http=UpstreamHttp.HTTP2),
        "module-tcp": _setup(door, mode=Mode.TCP),
        "module-tcp-server-name": _setup(door, mode=Mode.TCP, sni=True),
        "module-tcp-mtls": _setup(door, mode=Mode.TCP, **_MTLS),
    }


def _ext_authz() -> dict[str, Setup]:
    door = Door.EXT_AUTHZ
    return {
        "ext-authz-http": _setup(door, access_log=_LOG),
        "ext-authz-http-egress": _setup(door, direction=Direction.EGRESS),
        "ext-authz-http-proxy-protocol": _setup(door, listener_filter=True, proxy_protocol_from=("10.9.0.0/16",)),
        "ext-authz-http-mtls": _setup(door, **_MTLS),
        "ext-authz-grpc": _setup(door, upstream_http=UpstreamHttp.HTTP2),
        "ext-authz-tcp": _setup(door, mode=Mode.TCP),
    }


def _ext_proc() -> dict[str, Setup]:
    door = Door.EXT_PROC
    return {
        "ext-proc-http": _setup(door, access_log=_LOG),
        "ext-proc-http-forwarded-for": _setup(door, listener_filter=True, trusted_hops=1),
        "ext-proc-http-observe": _setup(door, observe=True),
        "ext-proc-http-mtls": _setup(door, **_MTLS),
        "ext-proc-grpc": _setup(door, upstream_http=UpstreamHttp.HTTP2),
    }


def examples() -> dict[str, Setup]:
    """Name and setup of each example."""
    return {**_module(), **_ext_authz(), **_ext_proc()}


def compose() -> Setup:
    """The Envoy of compose.yaml; its admin interface is for the container alone."""
    return _setup(Door.MODULE, upstreams=(Target(host="172.30.0.10", port=9000),))


def main() -> None:
    """Replace all that is generated."""
    EXAMPLES.mkdir(exist_ok=True)
    for name, setup in examples().items():
        (EXAMPLES / f"{name}.json").write_text(render(setup))
    COMPOSE.write_text(render(compose()))


if __name__ == "__main__":
    main()
