# SPDX-License-Identifier: Apache-2.0
"""
Who is at the other end: the listener filters that learn it, and the headers and addresses that must not tell it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from ext_authz.doctor.config.finding import Finding, check, error, warning
from ext_authz.doctor.config.view import NAME, Chain, Door, Filter, Kind, Listener, Manager, View

_PROXY, _SNI = "proxy_protocol.v3.ProxyProtocol", "tls_inspector.v3.TlsInspector"
_XFF = "whoever connects writes X-Forwarded-For as he likes"


@check
def listener_filter_missing(view: View) -> Iterator[Finding]:
    for listener in view.listeners:
        for door in listener.doors:
            if door.kind == Kind.MODULE and not listener.ours:
                yield error(
                    "listener-filter-missing",
                    listener.node.get("listener_filters") or listener.node,
                    f"the listener filter {NAME} is missing before {door.filter.label}",
                    "only it learns the connection's own address; without it every request is denied (172)",
                    "add the dynamic module listener filter, last in listener_filters",
                )


def _place(listener: Listener, part: str) -> tuple[int, Filter | None]:
    for index, item in enumerate(listener.filters):
        if item.is_(part) or item.name == f"envoy.filters.listener.{part.partition('.')[0]}":
            return index, item
    return -1, None


@check
def listener_filter_order(view: View) -> Iterator[Finding]:
    for listener in view.listeners:
        ours = listener.ours
        if not ours:
            continue
        at = listener.filters.index(ours)
        remedy = f"put {NAME} last in listener_filters"
        place, proxy = _place(listener, _PROXY)
        if proxy and place > at:
            what, why = f"{NAME} stands before proxy_protocol", "it decides before the PROXY header was read"
            yield error("listener-filter-order", ours.entry, what, why, remedy)
        place, sni = _place(listener, _SNI)
        if sni and place > at:
            what = f"{NAME} stands before tls_inspector"
            why = "it never sees the server name: rules with serverNames match nothing"
            yield error("listener-filter-order", ours.entry, what, why, remedy)


# ---- PROXY protocol ----


@check
def proxy_protocol(view: View) -> Iterator[Finding]:
    for listener in view.listeners:
        if not listener.doors:
            continue
        _, proxy = _place(listener, _PROXY)
        if listener.ours:
            yield from _trusted(listener.ours, proxy)
        elif proxy:
            yield error(
                "proxy-protocol",
                proxy.entry,
                "PROXY headers are believed from anybody",
                "who may connect here says with its first bytes who he is: the address in it becomes his identity",
                f"put the module's listener filter behind it, with proxy_protocol_from, before {_names(listener)}",
            )


def _names(listener: Listener) -> str:
    return " and ".join(sorted({door.kind.value for door in listener.doors}))


def _trusted(ours: Filter, proxy: Filter | None) -> Iterator[Finding]:
    networks = ours.config.get("filter_config", "value", "proxy_protocol_from")
    if proxy and not networks.items:
        what = f"proxy_protocol stands here, and {NAME} has no proxy_protocol_from"
        why = "the header is believed from nobody: it ends the connection"
        yield warning("proxy-protocol", ours.entry, what, why, "list the proxies' networks in proxy_protocol_from")
    if networks.items and not proxy:
        what = "proxy_protocol_from is set, and no proxy_protocol filter reads the header"
        why = "the header stays in the data, and every client has the identity of the proxy"
        yield warning("proxy-protocol", networks, what, why, f"add envoy.filters.listener.proxy_protocol before {NAME}")
    for item in networks.items:
        if _everybody(item.text):
            what = f"proxy_protocol_from holds {item.text}: everybody"
            why = "who may connect here says himself who he is"
            yield error("proxy-protocol", item, what, why, "list the proxies' own addresses only")


def _everybody(text: str) -> bool:
    try:
        return ipaddress.ip_network(text, strict=False).prefixlen == 0
    except ValueError:
        return False


# ---- X-Forwarded-For ----


def _managers(view: View) -> Iterator[tuple[Listener, Chain, Manager]]:
    for listener in view.listeners:
        for chain in listener.chains:
            for manager in chain.managers:
                yield listener, chain, manager


def by_source_address(door: Door) -> bool:
    """True if ext_proc's peer is the attribute source.address."""
    return door.kind == Kind.EXT_PROC and door.word("idmesh-peer") == "source-address"


@check
def forwarded_for(view: View) -> Iterator[Finding]:
    for listener, _, manager in _managers(view):
        for door in manager.chain.doors:
            if by_source_address(door):
                yield from _forged(manager)
                continue
            if not manager.node.get("use_remote_address").on and not _is_steered(listener):
                yield _not_remote(manager)
            found = manager.node.get("original_ip_detection_extensions")
            if found.items:
                what = "original_ip_detection_extensions name the source"
                why = "identity does not come from it, but what Envoy logs and passes on does: clients may write it"
                yield warning("forwarded-for", found, what, why, "make sure that only a trusted proxy's word counts")


def _is_steered(listener: Listener) -> bool:
    """Its clients are workloads that do not know of this Envoy: what they forward is for their servers alone."""
    return listener.ours is not None and bool(listener.ours.config.get("filter_config", "value").get("datapath"))


def _forged(manager: Manager) -> Iterator[Finding]:
    node = manager.node
    why = f"then source.address, from which ext_proc takes the peer, is X-Forwarded-For's; {_XFF}"
    remedy = "; or put the module's listener filter in front (`idmesh envoy --listener-filter`)"
    if not node.get("use_remote_address").on:
        what = "use_remote_address is not true"
        yield error("forwarded-for", node.get("use_remote_address"), what, why, f"set use_remote_address: true{remedy}")
    if (node.get("xff_num_trusted_hops").number or 0) > 0:
        what = f"xff_num_trusted_hops is {node.get('xff_num_trusted_hops').value}"
        yield error("forwarded-for", node.get("xff_num_trusted_hops"), what, why, f"set it to 0{remedy}")
    if node.get("original_ip_detection_extensions").items:
        what = "original_ip_detection_extensions name the source"
        yield error("forwarded-for", node.get("original_ip_detection_extensions"), what, why, f"remove them{remedy}")


def _not_remote(manager: Manager) -> Finding:
    return warning(
        "forwarded-for",
        manager.node.get("use_remote_address"),
        "use_remote_address is not true",
        f"identity does not come from it, but access logs, other filters and backends do: {_XFF}",
        "set use_remote_address: true, and xff_num_trusted_hops to the number of proxies before this Envoy",
    )


# ---- what ext_proc is told ----


@check
def ext_proc_peer(view: View) -> Iterator[Finding]:
    for listener, _, manager in _managers(view):
        for door in manager.chain.doors:
            if door.kind == Kind.EXT_PROC:
                yield from _told(listener, door)


def _told(listener: Listener, door: Door) -> Iterator[Finding]:
    config = door.config
    why = "the service does not learn who asks, and denies every request (172)"
    if by_source_address(door):
        if "source.address" not in config.get("request_attributes").texts:
            what = "request_attributes lacks source.address, which idmesh-peer names"
            yield error("ext-proc-peer", config.get("request_attributes"), what, why, "add source.address to it")
        return
    spaces = config.get("metadata_options", "forwarding_namespaces", "untyped")
    if NAME not in spaces.texts:
        what = f"metadata_options.forwarding_namespaces.untyped does not name {NAME}"
        remedy = f"add {NAME} to it; or where use_remote_address is true, initial metadata idmesh-peer: source-address"
        yield error("ext-proc-peer", spaces, what, why, remedy)
    if not listener.ours:
        what = f"the peer is to come from the listener filter {NAME}, which is missing"
        remedy = "add it; or where use_remote_address is true, initial metadata idmesh-peer: source-address"
        yield error("ext-proc-peer", listener.node.get("listener_filters"), what, why, remedy)


@check
def quic(view: View) -> Iterator[Finding]:
    for listener in view.listeners:
        options = listener.node.get("udp_listener_config")
        if options and any(door.kind == Kind.MODULE for door in listener.doors):
            what = "a UDP listener runs no listener filters of connections"
            why = "without them nobody learns the peer: every request over HTTP/3 is denied (172)"
            yield warning("quic", options, what, why, "serve HTTP/1 and HTTP/2 here, or take the ext_authz door")
