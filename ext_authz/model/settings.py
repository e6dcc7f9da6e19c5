# SPDX-License-Identifier: Apache-2.0
"""
Settings from the command line, from a file and from Cilium's own ConfigMap.

What the user states wins over the ConfigMap; the ConfigMap wins over our defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ext_authz.model.nodes import Mapping, Node, SyntaxProblem, parse_document
from ext_authz.model.nodes import Sequence as SequenceNode
from ext_authz.model.reading import near, shown
from ext_authz.model.types import Settings

_TRUE = {"true", "True", "TRUE", "yes", "on", "1"}
_FALSE = {"false", "False", "FALSE", "no", "off", "0"}
_CHOICES = {"allow_localhost": ("always", "policy"), "policy_enforcement": ("default", "always", "never")}
_MATCH_MODES = ("nodes", "pods")

# Keys of the ConfigMap cilium-config and the settings they are.
CONFIG_MAP_KEYS = {
    "cluster-name": "cluster_name",
    "enable-ipv4": "ipv4",
    "enable-ipv6": "ipv6",
    "allow-localhost": "allow_localhost",
    "enable-policy": "policy_enforcement",
    "enable-host-firewall": "host_firewall",
    "enable-node-selector-labels": "node_selector_labels",
    "policy-cidr-match-mode": "policy_cidr_match_mode",
    "policy-default-local-cluster": "default_local_cluster",
    "enable-l7-proxy": "l7_proxy",
    "enable-icmp-rules": "icmp_rules",
    "enable-non-default-deny-policies": "non_default_deny_policies",
    "enable-extended-ip-protocols": "extended_ip_protocols",
    "policy-audit-mode": "policy_audit_mode",
    "enable-k8s-networkpolicy": "k8s_networkpolicy",
}


class SettingsError(ValueError):
    """A setting that is unknown or has a value it cannot have; the message names both."""


@dataclass(frozen=True, slots=True)
class StatedSettings(Settings):
    """Settings that remember which of them the user stated."""

    stated: frozenset[str] = frozenset()


def parse_settings(pairs: Sequence[str], file: str | None = None) -> StatedSettings:
    """
    Settings from `--set KEY=VALUE` pairs and a YAML map; a pair wins over the file.

    Raises:
        SettingsError: Unknown key or value.
        OSError: The file cannot be read.
    """
    values = _read_file(file) if file is not None else {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise SettingsError(f"--set {shown(pair)}: must be KEY=VALUE")
        values[_known(key)] = parse_value(_known(key), text)
    return StatedSettings(**values, stated=frozenset(values))


def overlay(settings: Settings, found: dict[str, Any]) -> Settings:
    """The plain settings, with `found` (of a ConfigMap) wherever the user stated nothing."""
    stated = settings.stated if isinstance(settings, StatedSettings) else _changed(settings)
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings)}
    values.update({key: value for key, value in found.items() if key not in stated})
    return Settings(**values)


def parse_value(key: str, text: str) -> Any:
    """One setting's value from text."""
    default = getattr(Settings(), key)
    if isinstance(default, bool):
        if text in _TRUE | _FALSE:
            return text in _TRUE
        raise SettingsError(f"{key}={shown(text)}: must be true or false")
    if key == "policy_cidr_match_mode":
        return _match_modes(text.replace(",", " ").split())
    if key == "cluster_name":
        return _cluster_name(text)
    return _choice(key, text)


def _choice(key: str, text: str) -> str:
    if key == "allow_localhost" and text == "auto":
        return "always"  # what auto means under Kubernetes, the only place it is written
    if text not in _CHOICES[key]:
        raise SettingsError(f"{key}={shown(text)}: must be one of {', '.join(_CHOICES[key])}")
    return text


def _cluster_name(text: str) -> str:
    if not text or len(text) > 63 or not text.replace("-", "").replace(".", "").replace("_", "").isalnum():
        raise SettingsError(f"cluster_name={shown(text)}: must be a label value, not empty")
    return text


def _match_modes(words: Sequence[str]) -> tuple[str, ...]:
    for word in words:
        if word not in _MATCH_MODES:
            raise SettingsError(f"policy_cidr_match_mode={shown(word)}: must be of {', '.join(_MATCH_MODES)}")
    return tuple(words)


def _known(key: str) -> str:
    name = CONFIG_MAP_KEYS.get(key, key.replace("-", "_"))
    known = [field.name for field in dataclasses.fields(Settings)]
    if name not in known:
        raise SettingsError(f"unknown setting {shown(key)}; known: {', '.join(known)}{near(name, known)}")
    return name


def _changed(settings: Settings) -> frozenset[str]:
    """Settings made by hand state what differs from the defaults."""
    default = Settings()
    return frozenset(
        field.name
        for field in dataclasses.fields(Settings)
        if getattr(settings, field.name) != getattr(default, field.name)
    )


def _read_file(file: str) -> dict[str, Any]:
    try:
        root = parse_document(Path(file).read_text(encoding="utf-8"))
    except SyntaxProblem as problem:
        raise SettingsError(f"{file}:{problem.line + 1}:{problem.column + 1}: {problem.reason}") from None
    if root is None:
        return {}
    if not isinstance(root, Mapping):
        raise SettingsError(f"{file}: must be a mapping of settings")
    values = {}
    for key, (_, node) in root.fields.items():
        try:
            name = _known(key)
            values[name] = parse_value(name, _node_text(node))
        except SettingsError as error:
            raise SettingsError(f"{file}:{node.line + 1}:{node.column + 1}: {error}") from None
    return values


def _node_text(node: Node) -> str:
    if isinstance(node, Mapping):
        raise SettingsError("must be one value, not a mapping")
    if isinstance(node, SequenceNode):
        return ",".join(_node_text(item) for item in node.items)
    return node.text
