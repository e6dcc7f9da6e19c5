# SPDX-License-Identifier: Apache-2.0
"""
Random worlds, policies and probes, from a seed.

Values come from small pools so that rules meet, overlap and contradict each other; probes are drawn near what the
policies say.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.agreement.documents import Documents
from tests.agreement.draw import Draw
from tests.agreement.pools import (
    CIDRS4,
    LABELS,
    NAMES,
    NAMESPACES,
    NODE_LABELS,
    OUTSIDE4,
    PORT_NAMES,
    SETTINGS,
    Raw,
)
from tests.agreement.probes import Probes

# Labels that the default filter keeps out of identities.
NO_IDENTITY = {"pod-template-hash": "1", "topology.kubernetes.io/zone": "z"}


@dataclass(frozen=True)
class Scenario:
    """One world under one set of policies."""

    seed: int
    world: Raw
    settings: Raw
    policies: list[Raw]


class Generator:
    """Draws one scenario, then any number of probes for it."""

    def __init__(self, seed: int) -> None:
        self.draw = Draw(seed)
        self.settings = self._settings()
        self.world = self._world()
        documents = Documents(self.draw, self.settings)
        policies = [documents.draw(index) for index in range(self.draw.rng.choice((1, 2, 3, 4, 6, 8, 10)))]
        self.scenario = Scenario(seed, self.world, self.settings, policies)
        self._probes = Probes(self.draw, self.world, self.settings, policies)

    def probe(self) -> Raw:
        """The next probe of this scenario."""
        return self._probes.draw()

    def _settings(self) -> Raw:
        chance, settings = self.draw.chance, dict(SETTINGS)
        settings["ipv6"] = chance(0.4)
        settings["allow_localhost"] = "policy" if chance(0.2) else "always"
        settings["policy_enforcement"] = self.draw.rng.choices(("default", "always", "never"), (20, 2, 1))[0]
        settings["host_firewall"] = chance(0.3)
        settings["node_selector_labels"] = chance(0.3)
        settings["policy_cidr_match_mode"] = self.draw.some(("nodes", "pods")) if chance(0.15) else []
        settings["policy_audit_mode"] = chance(0.04)
        settings["default_local_cluster"] = not chance(0.15)
        settings["non_default_deny_policies"] = not chance(0.1)
        return settings

    def _world(self) -> Raw:
        rng = self.draw.rng
        endpoints = {f"pod{number}": self._pod(number) for number in range(rng.randint(4, 10))}
        endpoints["node-a"] = {"kind": "host", "node_labels": NODE_LABELS[0], "ips": ["192.168.1.1"]}
        for number, labels in enumerate(NODE_LABELS):
            node = {"kind": "remote-node", "node_labels": labels, "ips": [f"192.168.1.{number + 2}"]}
            endpoints[f"node{number}"] = {**node, "kube_apiserver": number == 1}
        endpoints["ext-api"] = {"kind": "external", "kube_apiserver": True, "ips": ["172.18.0.99"]}
        endpoints["starting"] = {"kind": "reserved", "identity": "init", "ips": ["10.0.9.99"]}
        return {
            "namespaces": {
                "default": {"team": "core"},
                "other": {"team": "edge", "env": "staging"},
                "prod": {"env": "prod"},
            },
            "endpoints": endpoints,
            "dns_cache": {name: self.draw.some((*OUTSIDE4, "10.0.0.1")) for name in self.draw.some(NAMES, 5)},
            "services": self._services(),
            "cidr_groups": self._groups(),
            "secrets": {
                "default/one": {"token": "hidden"},
                "default/two": {"a": "1", "b": "2"},
                "default/inner": {"tls.crt": "x", "tls.key": "y"},
                "default/outer": {"ca.crt": "z"},
            },
        }

    def _pod(self, number: int) -> Raw:
        rng = self.draw.rng
        pod: Raw = {
            "namespace": rng.choice(NAMESPACES),
            "labels": {key: rng.choice(values) for key, values in LABELS.items() if self.draw.chance(0.7)},
            "ips": [f"10.0.0.{number + 1}"],
        }
        if self.settings["ipv6"]:
            pod["ips"].append(f"fd00::{number + 1}")
        if self.draw.chance(0.1):
            pod["labels"] |= {"app.kubernetes.io/name": "n", **NO_IDENTITY}
        if self.draw.chance(0.06):
            pod["raw_labels"] = self._raw_labels(pod)
        if self.draw.chance(0.15):
            pod["service_account"] = "robot"
        if number and self.draw.chance(0.1):
            pod["cluster"] = "remote"
        names = self.draw.some(PORT_NAMES, 3) if self.draw.chance(0.7) else []
        pod["named_ports"] = {
            name: dict(zip(("port", "protocol"), rng.choice(PORT_NAMES[name]), strict=True)) for name in names
        }
        return pod

    def _raw_labels(self, pod: Raw) -> list[str]:
        """As a container runtime would tell them: some labels have another source."""
        sources = ("k8s", "container", "unspec")
        # Raw labels are an identity as it stands, so none of them may be one that an identity never has.
        kept = [(key, value) for key, value in pod["labels"].items() if key not in NO_IDENTITY]
        labels = [f"{self.draw.rng.choice(sources)}:{key}={value}" for key, value in kept]
        cluster = self.draw.rng.choice(("default", "remote"))
        return [*labels, "k8s:io.kubernetes.pod.namespace=default", f"k8s:io.cilium.k8s.policy.cluster={cluster}"]

    def _services(self) -> list[Raw]:
        return [
            {
                "namespace": "default",
                "name": "web",
                "labels": {"team": "a"},
                "selector": {"app": self.draw.rng.choice("abc")},
            },
            {"namespace": "other", "name": "web", "labels": {"team": "b"}, "selector": {"app": "a"}},
            {
                "namespace": "default",
                "name": "legacy",
                "labels": {"team": "a", "kind": "ext"},
                "backends": ["198.51.100.7"],
            },
        ]

    def _groups(self) -> Raw:
        return {
            "partners": {"labels": {"kind": "partner"}, "cidrs": self.draw.some(CIDRS4[1:])},
            "others": {
                "labels": {"kind": self.draw.rng.choice(("partner", "other"))},
                "cidrs": self.draw.some(CIDRS4[1:]),
            },
        }
