# SPDX-License-Identifier: Apache-2.0
"""
An Envoy configuration of the user's own: whether another filter could write what our doors read.

Our metadata namespace and filter-state key say who a peer is; a filter that copies a client's bytes there would let
the client say it. Also: a door that lets pass when it cannot ask.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ext_authz.doctor.registry import Finding, Patient, check, fail, ok, warn

_SPACE = "idmesh"
# Filters that write metadata or filter state from what a client sends, and the fields that say where.
_KEYS = ("metadata_namespace", "metadataNamespace", "object_key", "objectKey", "namespace")
# Filters whose code we cannot read: they may write anything.
_OPEN = ("http.lua", "http.wasm", "http.golang", "network.wasm", "http.ext_proc")


@check("envoy configuration")
def configuration(patient: Patient) -> Iterator[Finding]:
    if patient.config is None:
        return
    try:
        config = _read(patient.config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield fail(f"{patient.config}: {error}", "give a bootstrap as JSON or YAML")
        return
    findings = [finding for path, node in _nodes(config, "") for finding in _judge(path, node)]
    yield from findings or [ok(f"{patient.config}: no other filter writes our metadata")]


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error


def _nodes(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield path or ".", value
        for key, item in value.items():
            yield from _nodes(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nodes(item, f"{path}[{index}]")


def _judge(path: str, node: dict[str, Any]) -> Iterator[Finding]:
    kind = str(node.get("@type", ""))
    if any(node.get(key) == _SPACE for key in _KEYS):
        yield fail(f"{path}: writes {_SPACE}, which only our listener filter may", "use another name there")
    if any(part in kind.lower() for part in _OPEN):
        yield warn(f"{path}: code in this filter could write the metadata {_SPACE}", "make sure that it does not")
    if kind.endswith("ext_authz.v3.ExtAuthz") and (node.get("failure_mode_allow") or node.get("failureModeAllow")):
        yield fail(f"{path}: failure_mode_allow lets everything pass while the service is away", "set it to false")
