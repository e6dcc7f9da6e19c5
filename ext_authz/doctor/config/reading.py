# SPDX-License-Identifier: Apache-2.0
"""
JSON and YAML into nodes.

Both are composed by the YAML parser, which remembers lines. JSON may be indented with tabs, which YAML forbids:
between tokens they are as good as spaces.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from ext_authz.doctor.config.node import Node, joined

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEPTH_MAX = 100
_NODES_MAX = 500_000  # aliases can make a small file large
_BYTES_MAX = 64 << 20
_RESOLVED = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() in ("true", "yes", "on"),
    "tag:yaml.org,2002:float": lambda text: float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan")),
}


class ConfigError(ValueError):
    """The text is no configuration; the message says why and where."""


def read_config(data: bytes) -> Node:
    """
    Raises:
        ConfigError: Neither JSON nor YAML, no map, too deep or too large.
    """
    if len(data) > _BYTES_MAX:
        raise ConfigError("is larger than 64 MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8: {error.reason} at byte {error.start}") from None
    root = _Reader().build(_compose(text), "", 0)
    if root.kind != "map":
        raise ConfigError("is no map: an Envoy configuration is one")
    return root


def _compose(text: str) -> yaml.Node:
    try:
        return _documents(text.replace("\t", " ") if _is_json(text) else text)
    except yaml.YAMLError as error:
        raise ConfigError(f"is neither JSON nor YAML: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"cannot be read: {str(error)[:200]}") from None


def _documents(text: str) -> yaml.Node:
    loader = _LOADER(text)
    try:
        found = loader.get_single_node()
    finally:
        loader.dispose()
    if found is None:
        raise ConfigError("is empty")
    return found


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class _Reader:
    def __init__(self) -> None:
        self._left = _NODES_MAX

    def build(self, node: yaml.Node, path: str, depth: int) -> Node:
        self._left -= 1
        if depth > _DEPTH_MAX or self._left < 0:
            raise ConfigError(f"is nested too deeply or too large at line {node.start_mark.line + 1}")
        line = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return Node(path, line, fields=self._fields(node, path, depth), kind="map")
        if isinstance(node, yaml.SequenceNode):
            items = [self.build(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(node.value)]
            return Node(path, line, items=tuple(items), kind="list")
        value = _scalar(node)
        return Node(path, line, value=value, kind="absent" if value is None else "scalar")

    def _fields(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"has a key that is no text at line {key.start_mark.line + 1}")
            name = str(key.value)
            if name in found:
                raise ConfigError(f'has the key "{name}" twice at line {key.start_mark.line + 1}: which one counts?')
            if key.tag == "tag:yaml.org,2002:merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            found[name] = self.build(value, joined(path, name), depth + 1)
        for other in merged:
            if isinstance(other, yaml.MappingNode) and depth < _DEPTH_MAX:
                found = {**self._fields(other, path, depth + 1), **found}
        return found


def _scalar(node: yaml.Node) -> object:
    """As YAML 1.1 reads it; what that cannot convert stays text."""
    text = str(node.value)
    try:
        if node.tag == "tag:yaml.org,2002:int":
            return int(text.replace("_", ""), 0)
        return _RESOLVED[node.tag](text) if node.tag in _RESOLVED else text
    except ValueError:
        return text
