# SPDX-License-Identifier: Apache-2.0
"""
Who else could write what our doors read: the metadata namespace and filter-state key `idmesh` say who a peer is, and
only the module's listener filter may write them.
"""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.doctor.config.finding import Finding, check, error, warning
from ext_authz.doctor.config.view import NAME, Filter, View

_WHY = "the services take the peer from it, logs the verdict: what a client can write there could make him another"
# Fields of Envoy's filters that say where something is written.
_PLACES = ("metadata_namespace", "namespace", "object_key", "factory_key", "filter_state_key", "shared_with_key")
# Filters with code or a service of their own; what they write, no configuration says.
_CODE = ("http.lua", "http.wasm", "http.golang", "network.wasm", "network.golang", "dynamic_modules")


# What Envoy itself says of a verified certificate may stand there; native/include/idmesh/peer.h reads it.
REPORT_KEY = f"{NAME}.certificate"
REPORT = "%DOWNSTREAM_PEER_CERT_V_END(%s)%;%DOWNSTREAM_PEER_URI_SAN%"


def reports(item: Filter) -> bool:
    """True for the network filter that reports the connection's certificate, and nothing else of ours."""
    values = item.config.get("on_new_connection").items
    return item.is_("network.set_filter_state") and all(
        value.get("format_string", "text_format_source", "inline_string").text == REPORT
        for value in values
        if ours(value.get("object_key").text)
    )


def ours(text: str) -> bool:
    return text == NAME or text.startswith(f"{NAME}.")


@check
def writers(view: View) -> Iterator[Finding]:
    doors = {id(door.filter) for door in view.doors}
    for item in view.filters:
        if item.module or id(item) in doors:
            continue
        for name, node in item.config.walk():
            if node.text == REPORT_KEY and reports(item):
                continue
            if _snake(name) in _PLACES and ours(node.text):
                what = f'{item.label} writes "{node.text}"'
                yield error("metadata-writer", node, what, _WHY, "write under another name there")
        yield from _receives(item)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _receives(item: Filter) -> Iterator[Finding]:
    """What others' ext_proc services answer may become metadata only where this field names the namespace."""
    spaces = item.config.get("metadata_options", "receiving_namespaces")
    for node in (*spaces.get("untyped").items, *spaces.get("typed").items):
        if ours(node.text):
            what = f"{item.label} lets its service write the metadata {node.text}"
            yield error("metadata-writer", node, what, _WHY, "name another namespace there")


@check
def own_receivers(view: View) -> Iterator[Finding]:
    """Our own services answer under the filter's name: the peer's place stays the listener filter's."""
    for door in view.doors:
        yield from _receives(door.filter)


@check
def own_name(view: View) -> Iterator[Finding]:
    """What ext_authz answers becomes metadata under the name that its filter has."""
    for item in view.filters:
        if item.is_("filters.http.ext_authz.v3.ExtAuthz") and ours(item.name):
            what = f'the answers of ext_authz arrive as metadata "{item.name}", its filter\'s name'
            yield error("metadata-writer", item.entry.get("name"), what, _WHY, "name it envoy.filters.http.ext_authz")


@check
def code(view: View) -> Iterator[Finding]:
    doors = list(view.doors)
    for item in view.filters:
        if doors and not item.module and item.is_(*_CODE):
            what = f"{item.label} runs code that no configuration shows: it may write the metadata {NAME}"
            yield warning("metadata-writer", item.entry, what, _WHY, "make sure that it does not")


@check
def per_route_writers(view: View) -> Iterator[Finding]:
    for routes in view.routes:
        for name, node in routes.walk():
            if _snake(name) in _PLACES and ours(node.text):
                what = f'a route\'s filter configuration writes "{node.text}"'
                yield error("metadata-writer", node, what, _WHY, "write under another name there")
