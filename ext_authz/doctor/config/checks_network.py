# SPDX-License-Identifier: Apache-2.0
"""Doors for connections, and Envoy's own admin interface."""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.doctor.config.checks_service import loopback
from ext_authz.doctor.config.finding import Finding, check, error, warning
from ext_authz.doctor.config.view import Chain, Kind, View

_ON_DATA = ("ON_DOWNSTREAM_DATA", 1)


@check
def connect_mode(view: View) -> Iterator[Finding]:
    """Network ext_authz asks at the client's first byte; tcp_proxy must not connect before."""
    for chain in view.chains:
        if any(door.kind == Kind.EXT_AUTHZ for door in chain.doors):
            yield from _connect_mode(chain)


def _connect_mode(chain: Chain) -> Iterator[Finding]:
    for item in chain.filters:
        mode = item.config.get("upstream_connect_mode")
        if not item.is_("tcp_proxy.v3.TcpProxy"):
            continue
        if mode.value not in _ON_DATA:
            what = f"tcp_proxy's upstream_connect_mode is {mode.value or 'not set'}"
            why = (
                "the filter asks at the client's first byte; until then a denied client is connected and reads banners"
            )
            remedy = "set upstream_connect_mode: ON_DOWNSTREAM_DATA with max_early_data_bytes; server-first protocols "
            yield error("connect-mode", mode, what, why, f"{remedy}need the module's network filter")
        elif not item.config.get("max_early_data_bytes"):
            what = "max_early_data_bytes is missing"
            why = "ON_DOWNSTREAM_DATA needs it: Envoy refuses the configuration"
            remedy = "set max_early_data_bytes: 65536"
            yield error("connect-mode", item.config.get("max_early_data_bytes"), what, why, remedy)


@check
def asks_twice(view: View) -> Iterator[Finding]:
    """Before an HTTP connection manager the network filter must leave HTTP rules to the filter behind it."""
    for chain in view.chains:
        for door in chain.doors:
            if chain.managers and door.kind == Kind.EXT_AUTHZ and door.word("idmesh-next") != "http":
                what = "a network ext_authz stands before an HTTP connection manager"
                why = "it closes connections to ports with HTTP rules, for it cannot judge those (180)"
                remedy = "ask in the HTTP filter alone, or add initial metadata idmesh-next: http"
                yield warning("connect-mode", door.filter.entry, what, why, remedy)


@check
def admin(view: View) -> Iterator[Finding]:
    for name, node in view.root.walk():
        address = node.get("address", "socket_address", "address")
        if name == "admin" and address.text and not loopback(address.text):
            what = f"Envoy's admin interface listens at {address.text}"
            why = "whoever reaches it ends this Envoy, changes its log and runtime, and reads configuration and secrets"
            yield error("admin", address, what, why, "listen on 127.0.0.1 or a unix socket (address.pipe)")
