# SPDX-License-Identifier: Apache-2.0
"""Generated examples as trees, and the places in them where mistakes are planted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from ext_authz.doctor.config.finding import Severity

Tree = dict[str, Any]
Plant = Callable[[Tree], Any]
# Example, where it is planted, severity and name of the finding, and a part of the path that must be named.
Mistake = tuple[str, Plant, Severity, str, str]

MODULE, AUTHZ, PROC = "module-http", "ext-authz-http", "ext-proc-http"
TCP, AUTHZ_TCP = "module-tcp", "ext-authz-tcp"
E, W = Severity.ERROR, Severity.WARNING

# `import envoy` would find Envoy's own messages.
_SPEC = spec_from_file_location("idmesh_envoy_generate", Path(__file__).resolve().parents[3] / "envoy/generate.py")
assert _SPEC
assert _SPEC.loader
generate = module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate)

TYPE = "type.googleapis.com/envoy.extensions.filters"


def example(name: str) -> Any:
    return dict(json.loads((generate.EXAMPLES / f"{name}.json").read_text()))


def listener(tree: Tree) -> Any:
    return tree["staticResources"]["listeners"][0]


def chain(tree: Tree) -> Any:
    return listener(tree)["filterChains"][0]


def network(tree: Tree, index: int = 0) -> Any:
    return chain(tree)["filters"][index]["typedConfig"]


def manager(tree: Tree) -> Any:
    return next(
        item["typedConfig"]
        for item in chain(tree)["filters"]
        if item["typedConfig"]["@type"].endswith("HttpConnectionManager")
    )


def door_entry(tree: Tree) -> Any:
    return manager(tree)["httpFilters"][0]


def door(tree: Tree) -> Any:
    return door_entry(tree)["typedConfig"]


def our_listener_filter(tree: Tree) -> Any:
    return listener(tree)["listenerFilters"][-1]["typedConfig"]


def extension(tree: Tree) -> Any:
    return tree["bootstrapExtensions"][0]["typedConfig"]


def virtual_host(tree: Tree) -> Any:
    return manager(tree)["routeConfig"]["virtualHosts"][0]


def route(tree: Tree) -> Any:
    return virtual_host(tree)["routes"][0]


def cluster(tree: Tree, index: int) -> Any:
    return tree["staticResources"]["clusters"][index]


def tls(tree: Tree) -> Any:
    return chain(tree)["transportSocket"]["typedConfig"]


def http(kind: str, name: str = "", **fields: Any) -> Tree:
    """An HTTP filter: kind as in lua.v3.Lua."""
    config = {"@type": f"{TYPE}.http.{kind}", **fields}
    return {"name": name or f"envoy.filters.http.{kind.partition('.')[0]}", "typedConfig": config}


def before(*filters: Tree) -> Plant:
    """Plant filters in front of the door."""
    return lambda tree: manager(tree)["httpFilters"].__setitem__(slice(0, 0), filters)


def behind(*filters: Tree) -> Plant:
    return lambda tree: manager(tree)["httpFilters"].__setitem__(slice(1, 1), filters)


def put(where: Callable[[Tree], Tree], /, **fields: Any) -> Plant:
    """Set fields; None removes one."""

    def plant(tree: Tree) -> None:
        for name, value in fields.items():
            if value is None:
                where(tree).pop(name, None)
            else:
                where(tree)[name] = value

    return plant


def per_route(name: str, kind: str, **fields: Any) -> Plant:
    config = {"@type": kind if "/" in kind else f"{TYPE}.http.{kind}", **fields}
    return lambda tree: route(tree).__setitem__("typedPerFilterConfig", {name: config})


def word(key: str, value: str) -> Plant:
    return lambda tree: door(tree)["grpcService"]["initialMetadata"].append({"key": key, "value": value})


def words(**values: str) -> Plant:
    items = [{"key": key.replace("_", "-"), "value": value} for key, value in values.items()]
    return lambda tree: door(tree)["grpcService"].__setitem__("initialMetadata", items)


def settings(where: Callable[[Tree], Tree], field: str, **values: Any) -> Plant:
    return lambda tree: where(tree)[field]["value"].update(values)


def module(where: Callable[[Tree], Tree]) -> Callable[[Tree], Tree]:
    return lambda tree: where(tree)["dynamicModuleConfig"]["module"]["local"]


def second(where: str) -> Plant:
    return lambda tree: tree[where].append(copy.deepcopy(tree[where][0]))
