# SPDX-License-Identifier: Apache-2.0
"""The gRPC doors' words and fields, doors for connections, and the module."""

from __future__ import annotations

from planted import (
    AUTHZ,
    AUTHZ_TCP,
    MODULE,
    PROC,
    E,
    Mistake,
    Tree,
    W,
    chain,
    cluster,
    door,
    example,
    extension,
    module,
    network,
    our_listener_filter,
    put,
    second,
    settings,
    word,
    words,
)


def network_before_http(tree: Tree) -> None:
    asks = example(AUTHZ_TCP)
    chain(tree)["filters"].insert(0, chain(asks)["filters"][0])


def socket(tree: Tree) -> Tree:
    address: Tree = tree["admin"]["address"]["socketAddress"]
    return address


DOORS: dict[str, Mistake] = {
    # the gRPC doors
    "a misspelt word": (AUTHZ, word("idmesh-destnation", "a/b"), E, "initial-metadata", "initialMetadata"),
    "a word with underscores": (PROC, word("idmesh_port", "80"), E, "initial-metadata", "initialMetadata"),
    "an unknown word": (AUTHZ, word("idmesh-colour", "red"), E, "initial-metadata", "initialMetadata"),
    "a direction that is none": (AUTHZ, words(idmesh_direction="in"), E, "initial-metadata", "initialMetadata[0]"),
    "a port that is none": (AUTHZ, word("idmesh-port", "70000"), E, "initial-metadata", "initialMetadata"),
    "a word twice": (AUTHZ, word("idmesh-direction", "egress"), E, "initial-metadata", "initialMetadata"),
    "http_service": (AUTHZ, put(door, httpService={"serverUri": {}}), E, "ext-authz", "httpService"),
    "with_request_body": (AUTHZ, put(door, withRequestBody={"maxRequestBytes": 1}), W, "ext-authz", "withRequestBody"),
    "clear_route_cache": (AUTHZ, put(door, clearRouteCache=True), W, "ext-authz", "clearRouteCache"),
    "headers not raw": (AUTHZ, put(door, encodeRawHeaders=None), W, "ext-authz", "encode_raw_headers"),
    "allowed_headers": (AUTHZ, put(door, allowedHeaders={"patterns": []}), W, "hidden-headers", "allowedHeaders"),
    "forward_rules": (PROC, put(door, forwardRules={"allowedHeaders": {}}), W, "hidden-headers", "forwardRules"),
    "request headers skipped": (
        PROC,
        put(door, processingMode={"requestHeaderMode": "SKIP"}),
        E,
        "ext-proc-mode",
        "requestHeaderMode",
    ),
    "bodies": (PROC, put(door, processingMode={"requestBodyMode": "BUFFERED"}), W, "ext-proc-mode", "requestBodyMode"),
    "bodies wanted back": (
        PROC,
        put(door, processingMode={"requestBodyMode": "FULL_DUPLEX_STREAMED"}),
        E,
        "ext-proc-mode",
        "requestBodyMode",
    ),
    "code_details not told": (PROC, put(door, responseAttributes=None), W, "ext-proc-mode", "response_attributes"),
    "observability_mode": (PROC, put(door, observabilityMode=True), E, "ext-proc-observes", "observabilityMode"),
    "answers ignored": (PROC, put(door, disableImmediateResponse=True), E, "ext-proc-mode", "disableImmediateResponse"),
    "allow_mode_override": (PROC, put(door, allowModeOverride=True), W, "ext-proc-mode", "allowModeOverride"),
    "no mutations": (PROC, put(door, mutationRules={"disallowAll": True}), E, "ext-proc-mutations", "disallowAll"),
    "all mutations": (
        PROC,
        put(door, mutationRules={"allowAllRouting": True}),
        W,
        "ext-proc-mutations",
        "allowAllRouting",
    ),
    "route_cache_action": (PROC, put(door, routeCacheAction="CLEAR"), W, "ext-proc-mutations", "routeCacheAction"),
    "a cluster that is not there": (
        AUTHZ,
        lambda tree: tree["staticResources"]["clusters"].pop(),
        E,
        "cluster",
        "clusterName",
    ),
    "a cluster without HTTP/2": (
        PROC,
        lambda tree: cluster(tree, 1).pop("typedExtensionProtocolOptions"),
        E,
        "cluster",
        "clusters[1]",
    ),
    "a service in plain text": (
        AUTHZ,
        lambda tree: cluster(tree, 1)["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"].update(
            address={"socketAddress": {"address": "10.0.0.9", "portValue": 1}}
        ),
        W,
        "cluster",
        "socketAddress",
    ),
    # connections, admin
    "connected before asked": (
        AUTHZ_TCP,
        lambda tree: network(tree, 1).pop("upstreamConnectMode"),
        E,
        "connect-mode",
        "filters[1]",
    ),
    "connected at once": (
        AUTHZ_TCP,
        lambda tree: network(tree, 1).update(upstreamConnectMode="IMMEDIATE"),
        E,
        "connect-mode",
        "upstreamConnectMode",
    ),
    "no early data": (
        AUTHZ_TCP,
        lambda tree: network(tree, 1).pop("maxEarlyDataBytes"),
        E,
        "connect-mode",
        "max_early",
    ),
    "asked twice": (AUTHZ, network_before_http, W, "connect-mode", "filters[0]"),
    "admin for everybody": (MODULE, put(socket, address="0.0.0.0"), E, "admin", "admin.address"),
    "admin for everybody, IPv6": (AUTHZ, put(socket, address="::"), E, "admin", "admin.address"),
    # the module
    "no bootstrap extension": (
        MODULE,
        lambda tree: tree.pop("bootstrapExtensions"),
        E,
        "bootstrap-extension",
        "listenerFilters[0]",
    ),
    "two bootstrap extensions": (
        MODULE,
        second("bootstrapExtensions"),
        E,
        "bootstrap-extension",
        "bootstrapExtensions[1]",
    ),
    "a path without version": (
        MODULE,
        put(module(door), filename="/usr/lib/idmesh/libidmesh_envoy.so"),
        W,
        "module-file",
        "filename",
    ),
    "a path with digits but no version": (
        MODULE,
        put(module(door), filename="/usr/lib/x86_64-linux-gnu/libidmesh_envoy.so"),
        W,
        "module-file",
        "filename",
    ),
    "a relative path": (
        MODULE,
        put(module(door), filename="idmesh/1/libidmesh_envoy.so"),
        E,
        "module-file",
        "filename",
    ),
    "two files": (MODULE, put(module(door), filename="/opt/2/libidmesh_envoy.so"), E, "module-file", "filename"),
    "a module from the network": (
        MODULE,
        lambda tree: door(tree)["dynamicModuleConfig"].update(module={"remote": {}}),
        E,
        "module-file",
        "remote",
    ),
    "load_globally": (
        MODULE,
        lambda tree: door(tree)["dynamicModuleConfig"].update(loadGlobally=True),
        W,
        "module-file",
        "loadGlobally",
    ),
    "an unknown field": (MODULE, settings(door, "filterConfig", directoin="ingress"), E, "module-field", "directoin"),
    "a direction of the module's that is none": (
        MODULE,
        settings(door, "filterConfig", direction="in"),
        E,
        "module-field",
        "direction",
    ),
    "a field of another type": (MODULE, settings(door, "filterConfig", port="80"), E, "module-field", "port"),
    "a list that is none": (
        MODULE,
        settings(our_listener_filter, "filterConfig", proxy_protocol_from="10.0.0.0/8"),
        E,
        "module-field",
        "proxy_protocol_from",
    ),
    "a relative state": (MODULE, settings(extension, "extensionConfig", state="run"), E, "module-field", "state"),
    "two states": (MODULE, settings(extension, "extensionConfig", snapshot="/a"), E, "module-field", "extensionConfig"),
    "another filter's name": (MODULE, put(door, filterName="idmesh.x"), E, "module-field", "filterName"),
}
