# SPDX-License-Identifier: Apache-2.0
"""Folders of policies and endpoints, and what a look at them puts in force."""

from __future__ import annotations

from pathlib import Path

from ext_authz.agent.sources import Sources, View
from ext_authz.compiler.compile import Compiler
from ext_authz.engine import Engine, Flow
from ext_authz.engine.types import Direction
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.types import Settings

PODS = """
apiVersion: v1
kind: Namespace
metadata: {name: default}
"""
POD = """
---
apiVersion: v1
kind: Pod
metadata: {name: %(name)s, namespace: default, labels: {app: %(name)s}}
status: {podIPs: [{ip: %(ip)s}]}
"""
ADDRESSES = {"client": "10.0.0.1", "other": "10.0.0.2", "web": "10.0.0.3", "db": "10.0.0.4"}


def pods(*names: str) -> str:
    return PODS + "".join(POD % {"name": name, "ip": ADDRESSES[name]} for name in names or ADDRESSES)


def policy(name: str = "web", app: str = "web", peer: str = "client") -> str:
    return (
        "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n"
        f"metadata: {{name: {name}, namespace: default}}\n"
        f"spec:\n  endpointSelector: {{matchLabels: {{app: {app}}}}}\n"
        f"  ingress: [{{fromEndpoints: [{{matchLabels: {{app: {peer}}}}}]}}]\n"
    )


# A selector that can be read, and a rule that cannot.
BAD_RULE = policy().replace("fromEndpoints", "fromEndpoint")
# Nobody can tell whom this selects.
BAD_SELECTOR = policy().replace("{app: web}", "{app: [web]}")


class World:
    """A node's sources in a folder of the test's; `look` does what the agent does on a change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policies, self.endpoints, self.kept = folder / "policies", folder / "endpoints", folder / "kept"
        for made in (self.policies, self.endpoints, self.kept):
            made.mkdir(parents=True)
        self.write("endpoints/pods.yaml", pods())
        self.restart()

    def restart(self) -> None:
        """A new process: all that is left is on disk."""
        paths = {"policies": [self.policies], "endpoints": [self.endpoints]}
        self.sources = Sources(self.kept, paths, Settings(), None)
        self.compiler = Compiler(MemoryAllocator(1))

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def look(self) -> View:
        view = self.sources.look()
        self.engine = Engine.open(self.compiler.compile(view.world).snapshot)
        self.sources.persist(view)
        return view

    def passes(self, source: str, destination: str = "web") -> bool:
        """What the snapshot of the last look says of a connection between two pods."""
        flow = Flow(Direction.INGRESS, ADDRESSES[source], 6, 80, f"default/{destination}")
        return self.engine.decide(flow).passes
