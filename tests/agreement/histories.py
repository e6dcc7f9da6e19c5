# SPDX-License-Identifier: Apache-2.0
"""Files that somebody edits at random, one small change after the other."""

from __future__ import annotations

import random
from typing import Any

import yaml

from tests.agreement.documents import Documents
from tests.agreement.draw import Draw
from tests.agreement.pools import LABELS, NAMESPACES, NODE_LABELS, PORT_NAMES, SETTINGS

Raw = dict[str, Any]
ADDRESSES = (*(f"10.0.0.{number}" for number in range(1, 9)), "::ffff:10.0.0.3", "fd00::1", "fd00::2", "203.0.113.9")
_FILES = ("a.yaml", "b.yaml", "c/d.yaml", "e.yaml")
_KEPT_MAX = 14


class History:
    """`files`: documents' texts by file name, after the last edit. Documents are of all kinds that decide anything."""

    def __init__(self, seed: int) -> None:
        self._draw = Draw(seed)
        self._random = self._draw.rng
        self._documents = Documents(self._draw, SETTINGS)
        self.files: dict[str, list[str]] = {name: [] for name in _FILES}
        for _ in range(_KEPT_MAX):
            self._insert(self._text())

    def contents(self) -> list[tuple[str, bytes]]:
        return [(name, "---\n".join(texts).encode()) for name, texts in self.files.items()]

    def edit(self) -> None:
        """One change, or a few at once."""
        for _ in range(self._random.choice((1, 1, 1, 2, 5))):
            edits = (self._add, self._add, self._drop, self._move, self._copy, self._shift, self._alter, self._alter)
            self._random.choice(edits)()

    def _add(self) -> None:
        if sum(map(len, self.files.values())) > 2 * _KEPT_MAX:
            self._drop()
            self._drop()
        self._insert(self._text())

    def _insert(self, text: str) -> None:
        texts = self.files[self._random.choice(list(self.files))]
        texts.insert(self._random.randint(0, len(texts)), text)

    def _pick(self) -> tuple[list[str], int] | None:
        filled = [texts for texts in self.files.values() if texts]
        if not filled:
            return None
        texts = self._random.choice(filled)
        return texts, self._random.randrange(len(texts))

    def _drop(self) -> None:
        if picked := self._pick():
            picked[0].pop(picked[1])

    def _move(self) -> None:
        if picked := self._pick():
            self._insert(picked[0].pop(picked[1]))

    def _copy(self) -> None:
        """The same object twice is an error for both, until one is dropped again."""
        if self._draw.chance(0.3) and (picked := self._pick()):
            self._insert(picked[0][picked[1]])

    def _shift(self) -> None:
        """A comment moves what follows by a line, and changes nothing else."""
        if picked := self._pick():
            texts, index = picked
            lines = texts[index].splitlines(keepends=True)
            lines.insert(self._random.randint(0, len(lines)), "# said\n")
            texts[index] = "".join(lines)

    def _alter(self) -> None:
        """Another object of the same name."""
        if picked := self._pick():
            texts, index = picked
            old = yaml.safe_load(texts[index])
            new = yaml.safe_load(self._text(old["kind"]))
            new["metadata"] = {**new["metadata"], "name": old["metadata"]["name"]}
            texts[index] = yaml.safe_dump(new, sort_keys=False)

    def _text(self, kind: str = "") -> str:
        makers = {
            "Pod": self._pod,
            "Namespace": self._namespace,
            "Node": self._node,
            "Service": self._service,
            "EndpointSlice": self._slice,
            "CiliumCIDRGroup": self._group,
            "Secret": self._secret,
            "CiliumEndpoint": self._endpoint,
        }
        weights = (9, 2, 1, 1, 1, 1, 1, 1)
        if not kind and self._draw.chance(0.5):
            kind = "Policy"
        kind = kind or self._random.choices(list(makers), weights)[0]
        raw = makers[kind]() if kind in makers else self._policy()
        return yaml.safe_dump(raw, sort_keys=False)

    def _policy(self) -> Raw:
        raw = self._documents.draw(self._random.randrange(12))
        if self._draw.chance(0.03):
            raw["spec"] = {"endpointSelector": {"matchLabels": {"app": "a"}}, "ingress": [{"fromEndpoint": [{}]}]}
        return raw

    def _addresses(self) -> list[str]:
        return self._draw.some(ADDRESSES, 2) if self._draw.chance(0.95) else []

    def _pod(self) -> Raw:
        names = self._draw.some(PORT_NAMES, 2)
        labels = {key: self._random.choice(values) for key, values in LABELS.items() if self._draw.chance(0.7)}
        ports = [
            {"name": name, "containerPort": port, "protocol": protocol}
            for name in names
            for port, protocol in [self._random.choice(PORT_NAMES[name])]
        ]
        spec: Raw = {"containers": [{"name": "c", "ports": ports}]}
        if self._draw.chance(0.1):
            spec["serviceAccountName"] = "robot"
        address = f"10.0.0.{self._random.randint(1, 60)}"
        ips = self._addresses() if self._draw.chance(0.2) else [address]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"pod{self._random.randrange(12)}",
                "namespace": self._random.choice(NAMESPACES),
                "labels": labels,
            },
            "spec": spec,
            "status": {"podIPs": [{"ip": address} for address in ips]},
        }

    def _namespace(self) -> Raw:
        labels = {"env": self._random.choice(("prod", "staging"))} if self._draw.chance(0.7) else {}
        metadata = {"name": self._random.choice(NAMESPACES), "labels": labels}
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}

    def _node(self) -> Raw:
        number = self._random.randrange(3)
        address = self._random.choice((f"192.168.1.{number}", "10.0.0.1"))
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"node{number}", "labels": self._random.choice(NODE_LABELS)},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        }

    def _service(self) -> Raw:
        spec: Raw = {"selector": {"app": self._random.choice("abc")}} if self._draw.chance(0.6) else {}
        name = self._random.choice(("web", "legacy"))
        metadata = {"name": name, "namespace": "default", "labels": {"team": self._random.choice("ab")}}
        return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}

    def _slice(self) -> Raw:
        name = self._random.choice(("web", "legacy", "kubernetes"))
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-1",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [self._random.choice(("198.51.100.7", "172.18.0.99", "192.168.1.1"))]}],
        }

    def _group(self) -> Raw:
        cidrs = self._draw.some(("203.0.113.0/24", "198.51.100.0/24", "203.0.113.9/32", "10.0.0.0/8"))
        return {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumCIDRGroup",
            "metadata": {"name": self._random.choice(("partners", "others")), "labels": {"kind": "partner"}},
            "spec": {"externalCIDRs": cidrs},
        }

    def _secret(self) -> Raw:
        name = self._random.choice(("one", "two", "inner", "outer", "missing"))
        data = {"token": self._random.choice(("hidden", "other")), "tls.crt": "x", "tls.key": "y", "ca.crt": "z"}
        metadata = {"name": name, "namespace": "default"}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}

    def _endpoint(self) -> Raw:
        """Mostly of a pod that stands elsewhere, which says the same."""
        return {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumEndpoint",
            "metadata": {"name": f"pod{self._random.randrange(12)}", "namespace": "default"},
            "status": {
                "identity": {"labels": [f"k8s:app={self._random.choice('abc')}"]},
                "networking": {"addressing": [{"ipv4": f"10.0.0.{self._random.randint(1, 60)}"}]},
            },
        }


def flows_of(source: random.Random, count: int) -> list[tuple[str, str, str, int, str, str]]:
    """Direction, from, to, port, method and path."""
    ends = [*(f"10.0.0.{number}" for number in range(1, 61)), *ADDRESSES, "192.168.1.1", "198.51.100.7", "8.8.8.8"]
    paths = ("", "", "/", "/a", "/public/x", "/api/v1/z", "/users/12-ff", "/x")
    return [
        (
            source.choice(("ingress", "egress")),
            source.choice(ends),
            source.choice(ends),
            source.choice((22, 53, 80, 443, 1005, 8080, 8181, 9090)),
            source.choice(("GET", "POST")),
            source.choice(paths),
        )
        for _ in range(count)
    ]
