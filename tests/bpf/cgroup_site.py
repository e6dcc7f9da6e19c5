# SPDX-License-Identifier: Apache-2.0
"""
A node whose kernel judges, with a workload of its own: processes of a cgroup in the node's namespace.

    with CgroupSite(folder, cgroup) as site:
        site.pod("server", "10.1.0.2")
        site.workload("unit", "10.2.0.1")        # or shared: site.workload("unit")
        site.apply(policies)
        site.run("unit", lambda: ...)            # as a process of its cgroup
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ext_authz.compiler.compile import Compiler
from ext_authz.datapath import Datapath
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import load_text
from ext_authz.play.network import GATEWAY4, End, Network
from tests.bpf.bare import CGROUP, OBJECTS, address, run_in

SHARED = 1
STANDIN = "fd1d:6d65:7368::%x"
HOST = "172.18.0.1"
HOST6 = "fd18::1"
PACKETS = {"egress": "workload_egress", "ingress": "workload_ingress", "create": "workload_create"}
SOCKETS = {
    hook: f"workload_{hook}"
    for hook in CGROUP
    if hook.startswith(("connect", "sendmsg", "recvmsg", "getpeername", "bind"))
}
_SOCK_OPS = 3
_OBJECTS = ("from_workload", "to_workload", "workload_cgroup", "workload_sockets")
_NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n"
_POD = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: default, labels: {app: %s}}\n"
_STATUS = "status: {podIPs: %s}\n"


class CgroupSite:
    """folder: for a bpffs of its own; cgroup: parent of the workloads' cgroups."""

    def __init__(self, folder: Path, cgroup: Path) -> None:
        self._stack = contextlib.ExitStack()
        self.cgroup = cgroup
        self._compiler, self._revision = Compiler(MemoryAllocator()), 0
        self._pods: dict[str, tuple[str, ...]] = {}
        self._shared: set[str] = set()
        self._before: Counter[tuple[int, int]] = Counter()
        self.resolve: Callable[[str], int] = lambda _: 0
        try:
            self.net = self._stack.enter_context(Network())
            self.node = self.net.node
            self.node.ip([f"address add {HOST}/32 dev lo", f"address add {HOST6}/128 dev lo nodad"])
            objects = folder / "objects"
            objects.mkdir()
            for name in _OBJECTS:
                (objects / f"{name}.bpf.o").symlink_to(OBJECTS / f"{name}.bpf.o")
            with self.node.inside():
                self.path = Datapath.open(folder / "bpf", objects)
            self._stack.callback(self._clean)
            self.path.locals([HOST, HOST6, GATEWAY4])
        except BaseException:
            self._stack.close()
            raise

    def _clean(self) -> None:
        with self.node.inside():
            self.path.cleanup()

    def __enter__(self) -> CgroupSite:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    # ---- who is there ----

    def pod(self, name: str, *addresses: str) -> End:
        """A namespace with the label app: NAME, attached."""
        end = self.net.add(name, *addresses)
        self._pods[name] = end.addresses
        with self.node.inside():
            self.path.attach(end.ifindex, end.addresses, end.mac, peer_ifindex=end.peer_ifindex)
        return end

    def outside(self, name: str, *addresses: str) -> End:
        """A namespace that is no pod's."""
        return self.net.add(name, *addresses)

    def workload(self, name: str, *addresses: str) -> Path:
        """
        A cgroup with the label app: NAME, known once apply() was called. Without addresses it has the host's.

        Below another workload (NAME/CHILD) it has that one's programs already, and gets a row alone.
        """
        made = self.cgroup / name
        made.mkdir()
        if not addresses:
            self._shared.add(name)
        self._pods[name] = addresses or (STANDIN % len(self._pods),)
        self.node.ip([f"address add {one} dev lo{' nodad' if ':' in one else ''}" for one in addresses])
        if made.parent == self.cgroup:
            self.attach(name)
        return made

    def forget(self, name: str) -> None:
        self.path.delete("workloads", struct.pack("=Q", os.stat(self.cgroup / name).st_ino))

    def attach(self, name: str) -> None:
        descriptor = os.open(self.cgroup / name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for hook, program in (PACKETS | SOCKETS).items():
                self.path.link(f"{program}-{name}", program, descriptor, CGROUP[hook])
            self.path.link(f"workload_opened-{name}", "workload_opened", descriptor, _SOCK_OPS)
        finally:
            os.close(descriptor)

    def tell(self, name: str, identity: int | None = None) -> None:
        """Write the workload's row."""
        addresses = self._pods[name]
        first = [next((one for one in addresses if (":" in one) == six), "") for six in (False, True)]
        packed = [address(one) if one else bytes(16) for one in first]
        who = self.resolve(addresses[0]) if identity is None else identity
        number = list(self._pods).index(name) + 1
        row = struct.pack("=II16s16sII", who, number, *packed, SHARED if name in self._shared else 0, 0)
        self.path.update("workloads", struct.pack("=Q", os.stat(self.cgroup / name).st_ino), row)

    def apply(self, policies: str = "") -> None:
        """Put policies in force, and tell the kernel who the workloads are."""
        from ext_authz.engine.engine import Engine

        pods = "".join(_pod(name.rpartition("/")[2], ips) for name, ips in self._pods.items())
        loaded = load_text(f"{_NAMESPACE}{pods}---\n{policies}", "policy.yaml")
        assert not loaded.errors, loaded.errors
        made = self._compiler.compile(loaded.world)
        assert not made.errors, made.errors
        engine = Engine.open(made.snapshot)
        self.resolve = lambda text: engine.resolve(text)[0]
        self.path.publish(made.snapshot)
        for name in self._pods:
            if name not in self.net.ends:
                self.tell(name)

    # ---- what happens ----

    def run(self, name: str, function: Callable[[], Any]) -> Any:
        """What a function returns as a process of the workload, or of the host if there is none of that name."""
        return run_in(self.cgroup / name if name in self._pods else self.cgroup, self.node, function)

    def drops(self) -> dict[tuple[int, int], int]:
        """Packets dropped since the last asking, by reason and direction."""
        counted, _ = self.path.counters()
        now = Counter({(one.drop_reason, one.direction): one.packets for one in counted if one.drop_reason})
        new, self._before = now - self._before, now
        return dict(new)


def _pod(name: str, addresses: tuple[str, ...]) -> str:
    return _POD % (name, name) + _STATUS % json.dumps([{"ip": one} for one in addresses])


def allow(app: str, peer: str, port: int, protocol: str = "TCP", egress: bool = False, http: str = "") -> str:
    """A policy: to `app` from `peer` (egress: from `app` to `peer`) on that port, and nothing else."""
    way, field = ("egress", "toEndpoints") if egress else ("ingress", "fromEndpoints")
    rules = f", rules: {{http: [{{path: '{http}'}}]}}" if http else ""
    peers = (
        f"toEntities: [{peer}]" if peer in ("host", "world", "all") else f"{field}: [{{matchLabels: {{app: {peer}}}}}]"
    )
    if not egress:
        peers = peers.replace("toEntities", "fromEntities")
    name = f"{app}-{way}-{peer}-{port}-{protocol.lower()}"
    return (
        f"---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: default}}\n"
        f"spec: {{endpointSelector: {{matchLabels: {{app: {app}}}}}, {way}: [{{{peers}, "
        f"toPorts: [{{ports: [{{port: '{port}', protocol: {protocol}}}]{rules}}}]}}]}}\n"
    )
