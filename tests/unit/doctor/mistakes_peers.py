# SPDX-License-Identifier: Apache-2.0
"""Who connects, by addresses and certificates, and who else could say so."""

from __future__ import annotations

from typing import Any

from planted import (
    AUTHZ,
    MODULE,
    PROC,
    TCP,
    TYPE,
    E,
    Mistake,
    Plant,
    Tree,
    W,
    before,
    chain,
    door,
    door_entry,
    http,
    listener,
    manager,
    our_listener_filter,
    per_route,
    put,
    settings,
    tls,
    word,
    words,
)

METADATA = {"metadataNamespace": "idmesh", "key": "address"}
SERVICE = {"envoyGrpc": {"clusterName": "other"}}


def listener_filter(kind: str, at: int, **fields: Any) -> Plant:
    name = f"envoy.filters.listener.{kind.partition('.')[0]}"
    item = {"name": name, "typedConfig": {"@type": f"{TYPE}.listener.{kind}", **fields}}
    return lambda tree: listener(tree).setdefault("listenerFilters", []).insert(at, item)


def context(tree: Tree) -> Tree:
    common: Tree = tls(tree)["commonTlsContext"]
    return common


def validation(tree: Tree) -> Tree:
    return dict.__getitem__(context(tree), "validationContext")


def without(name: str) -> Plant:
    def plant(tree: Tree) -> None:
        chain(tree)["filters"] = [item for item in chain(tree)["filters"] if item["name"] != name]

    return plant


PEERS: dict[str, Mistake] = {
    # who connects
    "no listener filter": (MODULE, put(listener, listenerFilters=[]), E, "listener-filter-missing", "listenerFilters"),
    "no listener filter for tcp": (
        TCP,
        put(listener, listenerFilters=None),
        E,
        "listener-filter-missing",
        "listeners[0]",
    ),
    "proxy_protocol behind ours": (
        "module-http-proxy-protocol",
        lambda tree: listener(tree)["listenerFilters"].reverse(),
        E,
        "listener-filter-order",
        "listenerFilters[0]",
    ),
    "tls_inspector behind ours": (
        MODULE,
        listener_filter("tls_inspector.v3.TlsInspector", 1),
        E,
        "listener-filter-order",
        "listenerFilters[0]",
    ),
    "proxy_protocol that nobody is trusted with": (
        MODULE,
        listener_filter("proxy_protocol.v3.ProxyProtocol", 0),
        W,
        "proxy-protocol",
        "listenerFilters[1]",
    ),
    "proxy_protocol from everybody": (
        "module-http-proxy-protocol",
        settings(our_listener_filter, "filterConfig", proxy_protocol_from=["10.0.0.0/8", "0.0.0.0/0"]),
        E,
        "proxy-protocol",
        "proxy_protocol_from[1]",
    ),
    "proxy_protocol_from without the filter": (
        MODULE,
        settings(our_listener_filter, "filterConfig", proxy_protocol_from=["10.0.0.0/8"]),
        W,
        "proxy-protocol",
        "proxy_protocol_from",
    ),
    "proxy_protocol before ext_authz": (
        AUTHZ,
        listener_filter("proxy_protocol.v3.ProxyProtocol", 0),
        E,
        "proxy-protocol",
        "listenerFilters[0]",
    ),
    "use_remote_address false": (MODULE, put(manager, useRemoteAddress=False), W, "forwarded-for", "useRemoteAddress"),
    "use_remote_address absent": (AUTHZ, put(manager, useRemoteAddress=None), W, "forwarded-for", "use_remote_address"),
    "ext_proc without use_remote_address": (
        PROC,
        put(manager, useRemoteAddress=None),
        E,
        "forwarded-for",
        "use_remote_address",
    ),
    "ext_proc with trusted hops": (PROC, put(manager, xffNumTrustedHops=1), E, "forwarded-for", "xffNumTrustedHops"),
    "ext_proc with another source of addresses": (
        PROC,
        put(manager, originalIpDetectionExtensions=[{"name": "xff"}]),
        E,
        "forwarded-for",
        "originalIpDetectionExtensions",
    ),
    "another source of addresses": (
        MODULE,
        put(manager, originalIpDetectionExtensions=[{"name": "xff"}]),
        W,
        "forwarded-for",
        "originalIpDetectionExtensions",
    ),
    "ext_proc without source.address": (
        PROC,
        put(door, requestAttributes=["destination.address"]),
        E,
        "ext-proc-peer",
        "requestAttributes",
    ),
    "ext_proc that learns no peer": (
        PROC,
        words(idmesh_direction="ingress"),
        E,
        "ext-proc-peer",
        "listener_filters",
    ),
    "ext_proc without forwarding namespaces": (
        "ext-proc-http-forwarded-for",
        put(door, metadataOptions=None),
        E,
        "ext-proc-peer",
        "metadata_options",
    ),
    "QUIC": (MODULE, put(listener, udpListenerConfig={"quicOptions": {}}), W, "quic", "udpListenerConfig"),
    # writers
    "set_metadata": (
        MODULE,
        before(http("set_metadata.v3.Config", metadata=[{"metadataNamespace": "idmesh"}])),
        E,
        "metadata-writer",
        "metadata[0]",
    ),
    "header_to_metadata": (
        AUTHZ,
        before(http("header_to_metadata.v3.Config", requestRules=[{"header": "x", "onHeaderPresent": METADATA}])),
        E,
        "metadata-writer",
        "onHeaderPresent",
    ),
    "json_to_metadata": (
        PROC,
        before(http("json_to_metadata.v3.JsonToMetadata", requestRules={"rules": [{"onPresent": METADATA}]})),
        E,
        "metadata-writer",
        "onPresent",
    ),
    "payload_to_metadata": (
        AUTHZ,
        before(http("x.v3.PayloadToMetadata", requestRules=[{"onPresent": METADATA}])),
        E,
        "metadata-writer",
        "onPresent",
    ),
    "set_filter_state": (
        MODULE,
        before(http("set_filter_state.v3.Config", onRequestHeaders=[{"objectKey": "idmesh"}])),
        E,
        "metadata-writer",
        "objectKey",
    ),
    "filter state of a certificate": (
        MODULE,
        before(http("set_filter_state.v3.Config", onRequestHeaders=[{"objectKey": "idmesh.certificate"}])),
        E,
        "metadata-writer",
        "objectKey",
    ),
    "TLVs of PROXY headers": (
        MODULE,
        listener_filter("proxy_protocol.v3.ProxyProtocol", 0, rules=[{"onTlvPresent": METADATA}]),
        E,
        "metadata-writer",
        "onTlvPresent",
    ),
    "another's ext_proc": (
        AUTHZ,
        before(
            http(
                "ext_proc.v3.ExternalProcessor",
                "other",
                grpcService=SERVICE,
                metadataOptions={"receivingNamespaces": {"untyped": ["idmesh"]}},
            )
        ),
        E,
        "metadata-writer",
        "receivingNamespaces",
    ),
    "our ext_proc under the peer's name": (
        PROC,
        put(door, metadataOptions={"receivingNamespaces": {"untyped": ["idmesh"]}}),
        E,
        "metadata-writer",
        "receivingNamespaces",
    ),
    "ext_authz under the peer's name": (AUTHZ, put(door_entry, name="idmesh"), E, "metadata-writer", "name"),
    "lua": (AUTHZ, before(http("lua.v3.Lua")), W, "metadata-writer", "httpFilters[0]"),
    "another's module": (
        MODULE,
        before(http("dynamic_modules.v3.DynamicModuleFilter", "x", dynamicModuleConfig={"name": "x"})),
        W,
        "metadata-writer",
        "httpFilters[0]",
    ),
    "a route's writer": (
        AUTHZ,
        per_route("x", "set_metadata.v3.Config", metadata=[{"metadataNamespace": "idmesh"}]),
        E,
        "metadata-writer",
        "routes[0]",
    ),
    # certificates
    "no TLS": ("module-http-mtls", put(chain, transportSocket=None), E, "certificate", "transport_socket"),
    "no TLS before ext_authz": (
        "ext-authz-http-mtls",
        put(chain, transportSocket=None),
        E,
        "certificate",
        "transport_socket",
    ),
    "nothing verified": (
        "module-http-mtls",
        put(context, validationContext=None),
        E,
        "certificate",
        "commonTlsContext",
    ),
    "no authority": (
        "ext-proc-http-mtls",
        put(context, validationContext={"a": 1}),
        E,
        "certificate",
        "validationContext",
    ),
    "certificates optional": (
        "module-tcp-mtls",
        put(tls, requireClientCertificate=False),
        E,
        "certificate",
        "requireClient",
    ),
    "untrusted accepted": (
        "module-http-mtls",
        put(validation, trustChainVerification="ACCEPT_UNTRUSTED"),
        E,
        "certificate",
        "trustChainVerification",
    ),
    "expired accepted": (
        "module-http-mtls",
        put(validation, allowExpiredCertificate=True),
        W,
        "certificate",
        "allowExpired",
    ),
    "sessions resumed": (
        "module-http-mtls",
        put(tls, disableStatefulSessionResumption=None),
        E,
        "certificate",
        "disable_stateful",
    ),
    "certificates not reported": (
        "module-http-mtls",
        without("envoy.filters.network.set_filter_state"),
        E,
        "certificate",
        "filters",
    ),
    "handshake not waited for": ("module-tcp-mtls", without("idmesh.handshake"), E, "certificate", "filters"),
    "unverified certificates": (
        "ext-authz-http-mtls",
        without("envoy.filters.network.rbac"),
        W,
        "certificate",
        "filters",
    ),
    "certificates not shown": (
        "ext-authz-http-mtls",
        words(idmesh_trust_domain="cluster.local"),
        E,
        "certificate",
        "initialMetadata",
    ),
    "a certificate of no domain": (AUTHZ, word("idmesh-require", "certificate"), E, "certificate", "initialMetadata"),
}
