# SPDX-License-Identifier: Apache-2.0
"""Where doors stand, what they see of paths, how they fail, and how they are switched off."""

from __future__ import annotations

import copy

from planted import (
    AUTHZ,
    AUTHZ_TCP,
    MODULE,
    PROC,
    TCP,
    E,
    Mistake,
    Tree,
    W,
    before,
    behind,
    chain,
    cluster,
    door,
    door_entry,
    http,
    listener,
    manager,
    network,
    per_route,
    put,
    route,
    virtual_host,
)

SERVICE = {"envoyGrpc": {"clusterName": "other"}}
FILTER_CONFIG = "type.googleapis.com/envoy.config.route.v3.FilterConfig"
Z, P = "envoy.filters.http.ext_authz", "envoy.filters.http.ext_proc"


def no_door(tree: Tree) -> None:
    manager(tree)["httpFilters"].pop(0)


def second_chain_without_door(tree: Tree) -> None:
    other = copy.deepcopy(chain(tree))
    other["filters"][0]["typedConfig"]["httpFilters"].pop(0)
    listener(tree)["filterChains"].append(other)


def last(tree: Tree) -> None:
    manager(tree)["httpFilters"].reverse()


def swapped(tree: Tree) -> None:
    chain(tree)["filters"].reverse()


def in_matcher(tree: Tree) -> None:
    inner = manager(tree)["httpFilters"][0]
    matcher = {"@type": "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher"}
    manager(tree)["httpFilters"][0] = {"name": "m", "typedConfig": {**matcher, "extensionConfig": inner}}


def upgrade_filters(tree: Tree) -> None:
    manager(tree)["upgradeConfigs"][0]["filters"] = [manager(tree)["httpFilters"][-1]]


def second_point_before_lua(tree: Tree) -> None:
    options = next(iter(cluster(tree, 0)["typedExtensionProtocolOptions"].values()))
    options["httpFilters"].insert(1, http("lua.v3.Lua"))


def chain_to_elsewhere(tree: Tree) -> None:
    second_chain_without_door(tree)
    routes = listener(tree)["filterChains"][1]["filters"][0]["typedConfig"]["routeConfig"]
    routes["virtualHosts"][0]["routes"][0]["route"]["cluster"] = "metrics"


REQUESTS: dict[str, Mistake] = {
    # order
    "no door": (MODULE, no_door, E, "door-missing", "."),
    "no door for ext_authz": (AUTHZ, no_door, E, "door-missing", "."),
    "a way around the door": (MODULE, second_chain_without_door, E, "door-missing", "filterChains[1]"),
    "a chain without door": (MODULE, chain_to_elsewhere, W, "door-missing", "filterChains[1]"),
    "upgrades with filters of their own": (MODULE, upgrade_filters, E, "door-missing", "upgradeConfigs[0]"),
    "door behind router": (MODULE, last, E, "door-behind-router", "httpFilters[1]"),
    "ext_authz behind router": (AUTHZ, last, E, "door-behind-router", "httpFilters[1]"),
    "ext_proc behind router": (PROC, last, E, "door-behind-router", "httpFilters[1]"),
    "network door behind tcp_proxy": (TCP, swapped, E, "door-behind-router", "filters[1]"),
    "lua behind": (MODULE, behind(http("lua.v3.Lua")), W, "rewriter-behind-door", "httpFilters[1]"),
    "wasm behind": (AUTHZ, behind(http("wasm.v3.Wasm")), W, "rewriter-behind-door", "httpFilters[1]"),
    "header_mutation behind": (
        MODULE,
        behind(http("header_mutation.v3.HeaderMutation", mutations={"requestMutations": [{"remove": "x"}]})),
        E,
        "rewriter-behind-door",
        "httpFilters[1]",
    ),
    "transcoder behind": (
        PROC,
        behind(http("grpc_json_transcoder.v3.GrpcJsonTranscoder")),
        E,
        "rewriter-behind-door",
        "httpFilters[1]",
    ),
    "another's ext_authz behind": (
        MODULE,
        behind(http("ext_authz.v3.ExtAuthz", "other", grpcService=SERVICE)),
        W,
        "rewriter-behind-door",
        "httpFilters[1]",
    ),
    "lua behind the second point": (
        "module-http-second-point",
        second_point_before_lua,
        W,
        "rewriter-behind-door",
        "httpFilters[1]",
    ),
    "header_mutation before": (
        MODULE,
        before(http("header_mutation.v3.HeaderMutation")),
        W,
        "rewriter-before-door",
        "httpFilters[0]",
    ),
    "lua before": (MODULE, before(http("lua.v3.Lua")), W, "rewriter-before-door", "httpFilters[0]"),
    "cache before": (MODULE, before(http("cache.v3.CacheConfig")), E, "answers-before-door", "httpFilters[0]"),
    "door in a matcher": (AUTHZ, in_matcher, E, "door-disabled", "httpFilters[0]"),
    # paths
    "normalize_path absent": (MODULE, put(manager, normalizePath=None), E, "path-normalization", "normalize_path"),
    "normalize_path false": (AUTHZ, put(manager, normalizePath=False), E, "path-normalization", "normalizePath"),
    "merge_slashes absent": (PROC, put(manager, mergeSlashes=None), E, "path-normalization", "merge_slashes"),
    "escaped slashes kept": (
        MODULE,
        put(manager, pathWithEscapedSlashesAction="KEEP_UNCHANGED"),
        E,
        "path-normalization",
        "pathWithEscapedSlashesAction",
    ),
    "escaped slashes unset": (
        MODULE,
        put(manager, pathWithEscapedSlashesAction=None),
        E,
        "path-normalization",
        "path_with_escaped_slashes_action",
    ),
    "two paths": (
        MODULE,
        put(manager, pathNormalizationOptions={"httpFilterTransformation": {}}),
        E,
        "path-normalization",
        "pathNormalizationOptions",
    ),
    "prefix_rewrite": (
        MODULE,
        lambda tree: route(tree)["route"].update(prefixRewrite="/x"),
        W,
        "route-rewrite",
        "prefixRewrite",
    ),
    "regex_rewrite": (
        AUTHZ,
        lambda tree: route(tree)["route"].update(regexRewrite={"pattern": {"regex": "a"}}),
        W,
        "route-rewrite",
        "regexRewrite",
    ),
    # failing
    "failure_mode_allow": (AUTHZ, put(door, failureModeAllow=True), E, "failure-mode-allow", "failureModeAllow"),
    "failure_mode_allow in ext_proc": (
        PROC,
        put(door, failure_mode_allow=True),
        E,
        "failure-mode-allow",
        "failure_mode",
    ),
    "failure_mode_allow in network": (
        AUTHZ_TCP,
        put(network, failureModeAllow=True),
        E,
        "failure-mode-allow",
        "filters[0]",
    ),
    "status_on_error missing": (AUTHZ, put(door, statusOnError=None), W, "status-on-error", "status_on_error"),
    "status_on_error missing in ext_proc": (
        PROC,
        put(door, statusOnError=None),
        W,
        "status-on-error",
        "status_on_error",
    ),
    "status_on_error OK": (AUTHZ, put(door, statusOnError={"code": "OK"}), E, "status-on-error", "statusOnError"),
    "no time-out": (AUTHZ, lambda tree: door(tree)["grpcService"].pop("timeout"), W, "timeout", "timeout"),
    "time-out 0": (AUTHZ, lambda tree: door(tree)["grpcService"].update(timeout="0s"), E, "timeout", "timeout"),
    "time-out of a minute": (
        AUTHZ,
        lambda tree: door(tree)["grpcService"].update(timeout="60s"),
        W,
        "timeout",
        "timeout",
    ),
    "time-out of a millisecond": (
        AUTHZ_TCP,
        lambda tree: network(tree)["grpcService"].update(timeout="0.001s"),
        W,
        "timeout",
        "timeout",
    ),
    "message_timeout absent": (PROC, put(door, messageTimeout=None), W, "timeout", "message_timeout"),
    "message_timeout 0": (PROC, put(door, messageTimeout="0s"), E, "timeout", "messageTimeout"),
    "message_timeout long": (PROC, put(door, messageTimeout="100s"), W, "timeout", "messageTimeout"),
    "a stream's time-out": (
        PROC,
        lambda tree: door(tree)["grpcService"].update(timeout="1s"),
        W,
        "timeout",
        "grpcService.timeout",
    ),
    "request_timeout": (AUTHZ, put(manager, requestTimeout="1s"), W, "timeout", "requestTimeout"),
    "denials made successes": (
        MODULE,
        put(manager, localReplyConfig={"mappers": [{"statusCode": 200}]}),
        W,
        "local-reply",
        "statusCode",
    ),
    # disabled
    "disabled": (MODULE, put(door_entry, disabled=True), E, "door-disabled", "disabled"),
    "optional": (AUTHZ, put(door_entry, isOptional=True), E, "door-disabled", "isOptional"),
    "filter_enabled": (
        AUTHZ,
        put(door, filterEnabled={"defaultValue": {"numerator": 50}}),
        E,
        "door-disabled",
        "filterEnabled",
    ),
    "filter_enabled by runtime": (
        AUTHZ,
        put(door, filterEnabled={"defaultValue": {"numerator": 100}, "runtimeKey": "x"}),
        E,
        "door-disabled",
        "filterEnabled",
    ),
    "filter_enabled, denied otherwise": (
        AUTHZ,
        put(door, filterEnabled={"defaultValue": {"numerator": 5}}, denyAtDisable={"defaultValue": True}),
        W,
        "door-disabled",
        "filterEnabled",
    ),
    "filter_enabled_metadata": (
        AUTHZ_TCP,
        put(network, filterEnabledMetadata={"filter": "x"}),
        E,
        "door-disabled",
        "filterEnabledMetadata",
    ),
    "shadow_mode": (AUTHZ, put(door, shadowMode=True), E, "door-disabled", "shadowMode"),
    "route without ext_authz": (
        AUTHZ,
        per_route(Z, "ext_authz.v3.ExtAuthzPerRoute", disabled=True),
        E,
        "route-disabled",
        f'typedPerFilterConfig["{Z}"].disabled',
    ),
    "route without ext_proc": (
        PROC,
        per_route(P, "ext_proc.v3.ExtProcPerRoute", disabled=True),
        E,
        "route-disabled",
        "routes[0]",
    ),
    "route without the module": (
        MODULE,
        per_route("idmesh", FILTER_CONFIG, disabled=True),
        E,
        "route-disabled",
        "routes[0]",
    ),
    "virtual host without the module": (
        MODULE,
        lambda tree: virtual_host(tree).update(
            typedPerFilterConfig={"idmesh": {"@type": FILTER_CONFIG, "disabled": True}}
        ),
        E,
        "route-disabled",
        "virtualHosts[0]",
    ),
    "route that lets pass": (
        PROC,
        per_route(P, "ext_proc.v3.ExtProcPerRoute", overrides={"failureModeAllow": True}),
        E,
        "failure-mode-allow",
        "overrides",
    ),
    "route without request headers": (
        PROC,
        per_route(P, "ext_proc.v3.ExtProcPerRoute", overrides={"processingMode": {"requestHeaderMode": "SKIP"}}),
        E,
        "ext-proc-mode",
        "overrides",
    ),
    "route that asks another": (
        AUTHZ,
        per_route(Z, "ext_authz.v3.ExtAuthzPerRoute", checkSettings={"grpcService": SERVICE}),
        W,
        "route-override",
        "checkSettings",
    ),
    "route with words of its own": (
        PROC,
        per_route(
            P,
            "ext_proc.v3.ExtProcPerRoute",
            overrides={"grpcInitialMetadata": [{"key": "idmesh-direction", "value": "egress"}]},
        ),
        W,
        "route-override",
        "grpcInitialMetadata",
    ),
    "route that configures the module": (
        MODULE,
        per_route("idmesh", "dynamic_modules.v3.DynamicModuleFilterPerRoute"),
        E,
        "route-override",
        "routes[0]",
    ),
    "a route's misspelt destination": (
        AUTHZ,
        per_route(
            Z,
            "ext_authz.v3.ExtAuthzPerRoute",
            checkSettings={"contextExtensions": {"idmesh-destination": "a/b"}},
        ),
        E,
        "initial-metadata",
        "contextExtensions",
    ),
    "a route's time-out": (
        AUTHZ,
        per_route(Z, "ext_authz.v3.ExtAuthzPerRoute", checkSettings={"grpcService": {**SERVICE, "timeout": "0s"}}),
        E,
        "timeout",
        "checkSettings.grpcService.timeout",
    ),
    "scoped routes elsewhere": (AUTHZ, put(manager, scopedRoutes={"name": "x"}), W, "elsewhere", "scopedRoutes"),
    "listeners elsewhere": (
        PROC,
        lambda tree: tree.update(dynamicResources={"ldsConfig": {"ads": {}}}),
        W,
        "elsewhere",
        "ldsConfig",
    ),
    "routes elsewhere": (MODULE, put(manager, rds={"routeConfigName": "x"}), W, "elsewhere", "rds"),
}
