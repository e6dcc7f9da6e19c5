# SPDX-License-Identifier: Apache-2.0
"""Doors that are switched off: whole, for a part of the requests, or for a route."""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.doctor.config.finding import Finding, check, error, warning
from ext_authz.doctor.config.node import Node
from ext_authz.doctor.config.view import Door, Kind, View

_WHY = "what it would have judged passes unjudged"
DESTINATION = "idmesh.destination"  # a route's own, in ext_authz's context extensions
# What doors are called where only routes are given.
_USUAL = {
    "idmesh": Kind.MODULE,
    "envoy.filters.http.ext_authz": Kind.EXT_AUTHZ,
    "envoy.filters.http.ext_proc": Kind.EXT_PROC,
}
_PERCENT = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}


@check
def disabled(view: View) -> Iterator[Finding]:
    for door in view.doors:
        found = door.filter.entry.get("disabled")
        if found.on:
            yield error("door-disabled", found, f"{door.filter.label} is disabled", _WHY, "remove disabled: true")
        if door.filter.entry.get("is_optional").on:
            what = f"{door.filter.label} is optional: an Envoy that does not know it leaves it out"
            yield error("door-disabled", door.filter.entry.get("is_optional"), what, _WHY, "remove is_optional")


@check
def filter_enabled(view: View) -> Iterator[Finding]:
    for door in view.doors_of(Kind.EXT_AUTHZ):
        for name in ("filter_enabled", "filter_enabled_metadata"):
            found = door.config.get(name)
            if found and not _always(found):
                yield _partly(door, found, name)


def _partly(door: Door, found: Node, name: str) -> Finding:
    what = f"{name} leaves a part of the requests out"
    if door.config.get("deny_at_disable", "default_value").on:
        why = "what is left out is denied (deny_at_disable): allowed clients fail now and then"
        return warning("door-disabled", found, what, why, f"remove {name}")
    return error("door-disabled", found, what, _WHY, f"remove {name}, or at least set deny_at_disable")


def _always(node: Node) -> bool:
    """True for 100 %; a runtime key may change it at any time, without this file."""
    share = node.get("default_value")
    whole = _PERCENT.get(share.get("denominator").text or "HUNDRED", 1_000_000)
    return not node.get("runtime_key").text and (share.get("numerator").number or 0) >= whole


@check
def shadow(view: View) -> Iterator[Finding]:
    for door in view.doors_of(Kind.EXT_AUTHZ):
        found = door.config.get("shadow_mode")
        if found.on:
            what = "shadow_mode: the answer is written down, and every request goes on"
            yield error("door-disabled", found, what, _WHY, "remove shadow_mode")


# ---- routes ----


@check
def per_route(view: View) -> Iterator[Finding]:
    names = {door.filter.name: door.kind for door in view.doors} if view.listeners else _USUAL
    for routes in view.routes:
        for _, node in [("", routes), *routes.walk()]:
            for name, config in node.get("typed_per_filter_config").fields.items():
                if name in names or _per_route_kind(config.type) in names.values():
                    yield from _override(name, config, names)


def _per_route_kind(kind: str) -> Kind | None:
    if kind.endswith("ExtAuthzPerRoute"):
        return Kind.EXT_AUTHZ
    return Kind.EXT_PROC if kind.endswith("ExtProcPerRoute") else None


def _override(name: str, config: Node, names: dict[str, Kind]) -> Iterator[Finding]:
    outer = config
    if config.type.endswith("FilterConfig") and config.get("config"):
        config = config.get("config")
    for node in (outer, config):
        if node.get("disabled").on:
            what = f"{name} is disabled for this route"
            remedy = "remove it; what everybody may reach, a policy can say (fromEntities: [all])"
            yield error("route-disabled", node.get("disabled"), what, "whoever reaches the route is not judged", remedy)
    yield from _weakened(name, config)
    if names.get(name) == Kind.MODULE and config.type.endswith("DynamicModuleFilterPerRoute"):
        what = "the module takes no configuration per route"
        yield error("route-override", config, what, "Envoy refuses the configuration", "remove it")


def _weakened(name: str, config: Node) -> Iterator[Finding]:
    overrides = config.get("overrides")
    if overrides.get("failure_mode_allow").on:
        what = f"{name} lets this route pass while the service is away"
        yield error("failure-mode-allow", overrides.get("failure_mode_allow"), what, _WHY, "remove it")
    if overrides.get("processing_mode", "request_header_mode").value in ("SKIP", 2):
        found = overrides.get("processing_mode", "request_header_mode")
        yield error("ext-proc-mode", found, f"{name} shows no request headers on this route", _WHY, "remove it")
    for node in (overrides.get("grpc_service"), config.get("check_settings", "grpc_service")):
        if node:
            what = f"{name} asks another service on this route"
            remedy = "remove it, or make sure that it is idmesh and has the same initial metadata"
            yield warning("route-override", node, what, "that service decides, not the one of the filter", remedy)
    for item in overrides.get("grpc_initial_metadata").items:
        if item.get("key").text.lower().startswith("idmesh"):
            what = f"{name} gets another {item.get('key').text} on this route"
            yield warning("route-override", item, what, "the route is judged otherwise", "say it in the filter")
    for key, node in config.get("check_settings", "context_extensions").fields.items():
        if key.lower().startswith("idmesh") and key != DESTINATION:
            what = f"the context extension {key} means nothing to idmesh"
            why = "what it was to say is not said: the route is judged as the filter says"
            yield error("initial-metadata", node, what, why, f"the only key is {DESTINATION}")


# ---- what is not in the file ----


@check
def elsewhere(view: View) -> Iterator[Finding]:
    why = "what it brings can disable or bypass the doors, and is not in this file"
    for manager in view.managers:
        for name in ("rds", "scoped_routes"):
            if manager.chain.doors and manager.node.get(name):
                remedy = "give its route configurations to doctor, too"
                yield warning("elsewhere", manager.node.get(name), f"routes come by {name}", why, remedy)
    found = view.root.get("dynamic_resources", "lds_config")
    if found:
        yield warning("elsewhere", found, "listeners come by LDS", why, "give them to doctor, too")
    for item in view.filters:
        found = item.entry.get("config_discovery")
        if found:
            yield warning("elsewhere", found, f"{item.label} comes by ECDS", why, "judge what the server sends")
