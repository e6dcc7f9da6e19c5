# SPDX-License-Identifier: Apache-2.0
"""
A node whose kernel judges: pods attached, policies in force, counters and events at hand.

    with Site(PODS, policies) as site:
        site["client"].socket(...)
        assert site.drops() == {(133, EGRESS): 1}
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import yaml

from ext_authz.casefile import Case, Document
from ext_authz.compiler.compile import Compiler
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.types import PolicyError
from ext_authz.play.events import Event
from ext_authz.play.kernel import Kernel
from ext_authz.play.network import End, Network
from ext_authz.play.prepare import Prepared, prepare

Raw = dict[str, Any]
INGRESS, EGRESS = 0, 1
SETTINGS: Raw = {"cluster_name": "default", "ipv4": True, "ipv6": True, "allow_localhost": "always"}


class Site:
    """pods: name to its fixture as cases write it. Every pod with addresses gets a namespace and is attached."""

    def __init__(self, pods: Mapping[str, Raw], policies: list[Raw]) -> None:
        self._stack = contextlib.ExitStack()
        self._pods, self._compiler = dict(pods), Compiler(MemoryAllocator())
        self._before: Counter[tuple[int, int]] = Counter()
        try:
            self.net = self._stack.enter_context(Network())
            self.kernel = self._stack.enter_context(Kernel(self.net.node))
            self.apply(policies)
            for name, raw in pods.items():
                end = self.net.add(name, *raw["ips"])
                if raw.get("kind", "pod") == "pod":
                    self.kernel.attach(end)
            # What a workload says before it is attached passes no more than later: it does not count here.
            self.drops()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Site:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> End:
        return self.net.ends[name]

    def apply(self, policies: list[Raw]) -> Prepared:
        """Put these policies in force."""
        fixtures = {"endpoints": self._pods, "namespaces": {"default": {}}, "dns_cache": {}, "services": []}
        fixtures |= {"cidr_groups": {}, "secrets": {}}
        documents = tuple(Document(yaml.safe_dump(policy), policy) for policy in policies)
        made = prepare(Case("site", "site.yaml", fixtures, SETTINGS, documents, ()), self._compiler)
        if isinstance(made, PolicyError):
            raise ValueError(str(made))
        self.kernel.publish(made.snapshot, made.revision)
        return made

    def drops(self) -> dict[tuple[int, int], int]:
        """Packets dropped since the last asking, by reason and direction."""
        now = Counter({key: count for key, count in self.kernel.counted().items() if key[0]})
        new, self._before = now - self._before, now
        return dict(new)

    def events(self, timeout_s: float = 0.0) -> list[Event]:
        return self.kernel.events(timeout_s)


def pod(app: str, *addresses: str, **more: Any) -> Raw:
    """A pod of namespace default."""
    return {"labels": {"app": app}, "ips": list(addresses), **more}


def allow(app: str, peer: str, port: int, protocol: str = "TCP") -> Raw:
    """A policy: to `app` from `peer` on that port, and nothing else."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": f"{app}-from-{peer}-{protocol.lower()}{port}", "namespace": "default"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": app}},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": {"app": peer}}],
                    "toPorts": [{"ports": [{"port": str(port), "protocol": protocol}]}],
                }
            ],
        },
    }
