# SPDX-License-Identifier: Apache-2.0
"""The module: how it is loaded, and the fields of its own configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ext_authz.doctor.config.finding import Finding, check, error, warning
from ext_authz.doctor.config.node import Node
from ext_authz.doctor.config.view import Filter, Kind, View

TEXT, FLAG, NUMBER, LIST = "text", "flag", "number", "list"
# What native/envoy/*.c reads, a map for each kind of extension; a test compares them.
BOOTSTRAP = {"state": TEXT, "snapshot": TEXT, "flow_ring_bytes": NUMBER}
LISTENER = {"proxy_protocol_from": LIST, "original_dst": FLAG, "datapath": TEXT}
DOOR = {
    "direction": TEXT,
    "destination": TEXT,
    "metadata": TEXT,
    "port": NUMBER,
    "body": TEXT,
    "trust_domain": TEXT,
    "require": LIST,
    "address": TEXT,
}
_CHOICES = {
    "direction": ("ingress", "egress", "both"),
    "metadata": ("all", "denied", "none"),
    "address": ("evidence", "ignored"),
}
_NAMES = ("idmesh", "idmesh.upstream", "idmesh.empty")
# 1.2, a digest, or a folder /3/; "x86_64" is none.
_VERSION = re.compile(r"\d+\.\d+|[0-9a-f]{12,}|/v?\d+/")


@check
def bootstrap_extension(view: View) -> Iterator[Finding]:
    used = [item for item in view.filters if item.module]
    if used and not view.extensions and _whole(view):
        what = "the bootstrap extension of idmesh is missing"
        why = "only it loads policies: Envoy refuses the filters of the module"
        remedy = "add bootstrap_extensions with the state directory (`idmesh envoy` prints one)"
        yield error("bootstrap-extension", used[0].entry, what, why, remedy)
    for extra in view.extensions[1:]:
        what = "there is a second bootstrap extension of idmesh"
        yield error("bootstrap-extension", extra.entry, what, "Envoy refuses it", "keep one")
    if view.extensions and not used:
        what = "the bootstrap extension loads policies, and no filter of the module asks them"
        yield warning("bootstrap-extension", view.extensions[0].entry, what, "it costs memory only", "remove it")


def _whole(view: View) -> bool:
    """False for snippets: the extension stands in another file."""
    return bool(view.root.get("static_resources") or view.root.get("dynamic_resources"))


@check
def file(view: View) -> Iterator[Finding]:
    named: dict[str, Filter] = {}
    for item in view.modules:
        config = item.config.get("dynamic_module_config")
        path = config.get("module", "local", "filename")
        if config.get("module", "remote"):
            what = "the module is fetched over the network"
            why = "while it cannot be fetched Envoy leaves the filter out, and everything passes"
            yield error("module-file", config.get("module", "remote"), what, why, "name a local file")
        if config.get("load_globally").on:
            what = "load_globally: the module's symbols bind to those of others"
            yield warning(
                "module-file", config.get("load_globally"), what, "code may run that nobody meant", "remove it"
            )
        if path.text and path.text not in named:
            named[path.text] = item
            yield from _path(path)
    if len(named) > 1:
        first, second = list(named.values())[:2]
        where = second.config.get("dynamic_module_config", "module", "local", "filename")
        what = f"{where.text} is another file than that of {first.label}"
        why = "two files are two modules: what the extension of one loads, the filters of the other never see"
        yield error("module-file", where, what, why, "name the same file everywhere")


def _path(path: Node) -> Iterator[Finding]:
    if not path.text.startswith("/"):
        what, why = f"{path.text} is relative", "what is loaded then depends on where Envoy was started"
        yield error("module-file", path, what, why, "name the file by its absolute path")
    elif not _VERSION.search(path.text):
        what = "the module's path holds no version"
        why = "Envoy keeps the old file when a new one takes its place: an update changes nothing, unnoticed"
        remedy = "install each version at a path of its own, like /usr/lib/idmesh/0.1.0/libidmesh_envoy.so"
        yield warning("module-file", path, what, why, remedy)


# ---- fields ----


@check
def fields(view: View) -> Iterator[Finding]:
    for item in view.extensions:
        yield from _fields(item.config.get("extension_config"), BOOTSTRAP)
        yield from _state(item.config.get("extension_config", "value"), item)
    for listener in view.listeners:
        for item in listener.filters:
            if item.module:
                yield from _fields(item.config.get("filter_config"), LISTENER)
    for door in view.doors_of(Kind.MODULE):
        yield from _fields(door.config.get("filter_config"), DOOR)
        yield from _door(door.filter)


_KINDS = {TEXT: (str,), FLAG: (bool,), NUMBER: (int, float)}


def _fields(config: Node, known: dict[str, str]) -> Iterator[Finding]:
    if config.get("value").text:
        return  # JSON in a StringValue: Envoy and the module say what is wrong with it
    for name, node in config.get("value").fields.items():
        why = "the module refuses the configuration"
        if name not in known:
            remedy = f"the fields are {', '.join(known)}"
            yield error("module-field", node, f"{name} is no field of the module", why, remedy)
        elif not _fits(node, known[name]):
            yield error("module-field", node, f"{name} must be a {known[name]}", why, "see envoy/README.md")
        elif name in _CHOICES and node.text not in _CHOICES[name]:
            remedy = f"say {', '.join(_CHOICES[name])}"
            yield error("module-field", node, f"{name} is {node.text!r}", why, remedy)


def _fits(node: Node, kind: str) -> bool:
    if kind == LIST:
        return node.kind == "list" and len(node.texts) == len(node.items)
    return isinstance(node.value, _KINDS[kind]) and (kind == FLAG or not isinstance(node.value, bool))


def _state(value: Node, item: Filter) -> Iterator[Finding]:
    said = [node for node in (value.get("state"), value.get("snapshot")) if node]
    if value.kind != "map" or len(said) != 1:
        what, why = "exactly one of state and snapshot is needed", "the module refuses the configuration"
        yield error("module-field", value if value else item.entry, what, why, "name the node's state directory")
    elif not said[0].text.startswith("/"):
        what, why = f"{said[0].text} is no absolute path", "the module refuses the configuration"
        yield error("module-field", said[0], what, why, "name it by its absolute path")


def _door(item: Filter) -> Iterator[Finding]:
    name = item.config.get("filter_name")
    if "filters.http." in item.type and name.text not in _NAMES:
        what = f"filter_name is {name.text!r}"
        yield error("module-field", name, what, "the module refuses it", f"say {' or '.join(_NAMES[:2])}")
