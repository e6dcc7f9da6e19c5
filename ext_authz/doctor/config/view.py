# SPDX-License-Identifier: Apache-2.0
"""
A configuration arranged for the checks: listeners with their chains, filters, and which of them are our doors.

Messages are found by their shape, wherever they stand: in a bootstrap, in a discovery response, in Envoy's config
dump, or alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from ext_authz.doctor.config.node import Node, camel

NAME = "idmesh"
MANAGER = "HttpConnectionManager"
# Filters of the module that let new connections on: one that benchmarks compare with, one that only waits for TLS, one
# that leaves requests to another.
_NO_JUDGES = (f"{NAME}.empty", f"{NAME}.handshake", f"{NAME}.follow")
_LISTENER = ("filter_chains", "listener_filters", "default_filter_chain")
_CLUSTER = ("load_assignment", "typed_extension_protocol_options", "lb_policy", "eds_cluster_config")


class Kind(StrEnum):
    """What a door is."""

    MODULE = "module"
    EXT_AUTHZ = "ext_authz"
    EXT_PROC = "ext_proc"


@dataclass(frozen=True, eq=False)
class Filter:
    """One item of a list of filters. type: as Node.type, of what it is configured with."""

    entry: Node
    name: str
    type: str
    config: Node

    def is_(self, *parts: str) -> bool:
        return any(part in self.type for part in parts)

    @property
    def module(self) -> bool:
        """True if it is a filter of our own module, whatever it is called."""
        wanted = self.config.get("dynamic_module_config")
        said = f"{wanted.get('name').text} {wanted.get('module', 'local', 'filename').text}"
        return "dynamic_modules" in self.type and "idmesh" in said

    @property
    def label(self) -> str:
        return self.name or self.type or "a filter without a name"


def unpack(entry: Node) -> Filter:
    """From {name, typed_config}; a TypedStruct counts as what it stands for."""
    config = entry.get("typed_config")
    kind = config.type
    if kind.endswith(("type.v3.TypedStruct", "type.v1.TypedStruct")):
        kind = config.get("type_url").text.rpartition("/")[2].removeprefix("envoy.").removeprefix("extensions.")
        config = config.get("value")
    return Filter(entry, entry.get("name").text, kind, config)


def filters_of(entries: Node) -> tuple[Filter, ...]:
    return tuple(unpack(entry) for entry in entries.items)


@dataclass(frozen=True, eq=False)
class Door:
    """A filter that asks us. service: of the gRPC doors, what says whom and how."""

    filter: Filter
    kind: Kind

    @property
    def config(self) -> Node:
        return self.filter.config

    @property
    def service(self) -> Node:
        return self.config.get("grpc_service")

    @cached_property
    def words(self) -> dict[str, Node]:
        """gRPC initial metadata: key to the value's node; of a key given twice, the last."""
        return {item.get("key").text: item for item in self.service.get("initial_metadata").items}

    def word(self, key: str) -> str:
        found = self.words.get(key)
        return found.get("value").text if found else ""

    def setting(self, name: str) -> Node:
        """A field of our module's own configuration."""
        return self.config.get("filter_config", "value").get(name)


@dataclass(frozen=True, eq=False)
class HttpChain:
    """HTTP filters in their order, and who of them is a door. node: what holds them."""

    node: Node
    filters: tuple[Filter, ...]
    doors: tuple[Door, ...]

    def before(self, door: Door) -> tuple[Filter, ...]:
        return self.filters[: self.filters.index(door.filter)]

    def behind(self, door: Door) -> tuple[Filter, ...]:
        return self.filters[self.filters.index(door.filter) + 1 :]


@dataclass(frozen=True, eq=False)
class Manager:
    """An HTTP connection manager; upgrades: chains of its own that an upgrade_config names."""

    node: Node
    chain: HttpChain
    upgrades: tuple[HttpChain, ...]


@dataclass(frozen=True, eq=False)
class Chain:
    """A filter chain of a listener."""

    node: Node
    filters: tuple[Filter, ...]
    doors: tuple[Door, ...]
    managers: tuple[Manager, ...]

    @property
    def all_doors(self) -> tuple[Door, ...]:
        return (*self.doors, *(door for manager in self.managers for door in manager.chain.doors))


@dataclass(frozen=True, eq=False)
class Listener:
    node: Node
    filters: tuple[Filter, ...]
    chains: tuple[Chain, ...]

    @property
    def ours(self) -> Filter | None:
        """Our listener filter."""
        return next((item for item in self.filters if item.module), None)

    @property
    def doors(self) -> tuple[Door, ...]:
        return tuple(door for chain in self.chains for door in chain.all_doors)


@dataclass(frozen=True, eq=False)
class View:
    root: Node
    listeners: tuple[Listener, ...] = ()
    clusters: dict[str, Node] = field(default_factory=dict)
    upstream: tuple[HttpChain, ...] = ()
    routes: tuple[Node, ...] = ()
    extensions: tuple[Filter, ...] = ()

    @property
    def chains(self) -> Iterator[Chain]:
        return (chain for listener in self.listeners for chain in listener.chains)

    @property
    def managers(self) -> Iterator[Manager]:
        return (manager for chain in self.chains for manager in chain.managers)

    @property
    def http_chains(self) -> Iterator[HttpChain]:
        for manager in self.managers:
            yield manager.chain
            yield from manager.upgrades
        yield from self.upstream

    @property
    def doors(self) -> Iterator[Door]:
        for chain in self.chains:
            yield from chain.doors
        for http in self.http_chains:
            yield from http.doors

    def doors_of(self, *kinds: Kind) -> Iterator[Door]:
        return (door for door in self.doors if door.kind in kinds)

    @property
    def filters(self) -> Iterator[Filter]:
        """Every filter of every kind."""
        for listener in self.listeners:
            yield from listener.filters
            for chain in listener.chains:
                yield from chain.filters
        for http in self.http_chains:
            yield from http.filters

    @property
    def modules(self) -> Iterator[Filter]:
        """Filters of our module, and its bootstrap extensions."""
        yield from (item for item in self.filters if item.module)
        yield from self.extensions


def make_view(root: Node) -> View:
    """Everything that is found; the gRPC filters are ours if they say so, or if nothing else in the file is."""
    view = _Maker(root, everything=False).make()
    return view if any(True for _ in view.doors) else _Maker(root, everything=True).make()


def _has(node: Node, names: Iterable[str]) -> bool:
    return any(name in node.fields or camel(name) in node.fields for name in names)


class _Maker:
    def __init__(self, root: Node, everything: bool) -> None:
        self._root = root
        self._everything = everything
        self._nodes = [root, *(node for _, node in root.walk() if node.kind == "map")]
        self._clusters = {node.get("name").text: node for node in self._nodes if _has(node, _CLUSTER)}

    def make(self) -> View:
        return View(
            root=self._root,
            listeners=tuple(self._listener(node) for node in self._nodes if _has(node, _LISTENER)),
            clusters=self._clusters,
            upstream=tuple(self._upstream()),
            routes=tuple(node for node in self._nodes if _has(node, ("virtual_hosts",))),
            extensions=tuple(self._extensions()),
        )

    def _extensions(self) -> Iterator[Filter]:
        for node in self._nodes:
            if _has(node, ("bootstrap_extensions",)):
                yield from (item for item in filters_of(node.get("bootstrap_extensions")) if item.module)

    def _listener(self, node: Node) -> Listener:
        chains = [*node.get("filter_chains").items]
        if node.get("default_filter_chain"):
            chains.append(node.get("default_filter_chain"))
        return Listener(node, filters_of(node.get("listener_filters")), tuple(map(self._chain, chains)))

    def _chain(self, node: Node) -> Chain:
        filters = filters_of(node.get("filters"))
        managers = tuple(self._manager(item.config) for item in filters if item.type.endswith(MANAGER))
        return Chain(node, filters, self._doors(filters), managers)

    def _manager(self, node: Node) -> Manager:
        upgrades = [item for item in node.get("upgrade_configs").items if item.get("filters").items]
        return Manager(
            node,
            self._http(node, node.get("http_filters")),
            tuple(self._http(item, item.get("filters")) for item in upgrades),
        )

    def _http(self, node: Node, entries: Node) -> HttpChain:
        filters = filters_of(entries)
        return HttpChain(node, filters, self._doors(filters))

    def _upstream(self) -> Iterator[HttpChain]:
        for cluster in self._clusters.values():
            for options in cluster.get("typed_extension_protocol_options").fields.values():
                if options.get("http_filters").items:
                    yield self._http(options, options.get("http_filters"))

    def _doors(self, filters: tuple[Filter, ...]) -> tuple[Door, ...]:
        return tuple(Door(item, kind) for item in filters if (kind := self._kind(item)))

    def _kind(self, item: Filter) -> Kind | None:
        if item.module:
            return None if item.config.get("filter_name").text in _NO_JUDGES else Kind.MODULE
        if item.type.endswith("ext_authz.v3.ExtAuthz"):
            kind = Kind.EXT_AUTHZ
        elif item.type.endswith("ext_proc.v3.ExternalProcessor"):
            kind = Kind.EXT_PROC
        else:
            return None
        return kind if self._everything or self._asks_us(item) else None

    def _asks_us(self, item: Filter) -> bool:
        config = item.config
        cluster = config.get("grpc_service", "envoy_grpc", "cluster_name").text
        names = [item.name, cluster, config.get("stat_prefix").text]
        names += config.get("metadata_context_namespaces").texts
        names += config.get("metadata_options", "forwarding_namespaces", "untyped").texts
        names += [word.get("key").text for word in config.get("grpc_service", "initial_metadata").items]
        if cluster in self._clusters:
            names += [node.text for name, node in self._clusters[cluster].walk() if name in ("path", "address")]
        return any(NAME in name.lower() for name in names)
