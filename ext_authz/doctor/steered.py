# SPDX-License-Identifier: Apache-2.0
"""
Steers one connection in namespaces of its own, the way a node does it: programs loaded, a request rule in force, a
transparent listener in a cgroup. Sysctls that can break it are set there as this host has them.

If the connection does not arrive, each of them is tried at the value that works elsewhere: what mends it is to blame.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ext_authz.agent import cgroups
from ext_authz.agent.datapath_steering import Steering
from ext_authz.compiler.compile import Compiler
from ext_authz.datapath import Datapath
from ext_authz.datapath.routing import Routing
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import load_text
from ext_authz.play.network import End, Network

PORT = 15001
# Below /proc/sys/net, with the value that works.
SYSCTLS = {
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/all/src_valid_mark": "0",
    "ipv4/tcp_fwmark_accept": "0",
    "ipv4/conf/all/accept_local": "0",
    "ipv4/conf/all/route_localnet": "0",
    "ipv4/ip_early_demux": "1",
    "ipv4/tcp_early_demux": "1",
}
INTERFACE_SYSCTLS = {
    "ipv4/conf/{}/rp_filter": "2",
    "ipv4/conf/{}/src_valid_mark": "0",
    "ipv4/conf/{}/accept_local": "1",
}
_CLIENT, _SERVER = "10.0.0.1", "10.0.0.2"
_WAIT_S = 1.0
_WORLD = """\
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: default, labels: {app: client}}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: default, labels: {app: server}}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{}]}}]
"""
_LISTENER = """\
import os, socket, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
listener = socket.socket()
listener.setsockopt(socket.SOL_IP, 19, 1)
listener.bind(("127.0.0.1", int(sys.argv[2])))
listener.listen()
print("ready", flush=True)
while True:
    line, peer = listener.accept()
    print(peer[0], *line.getsockname(), flush=True)
    line.close()
"""


class Probe:
    """A node with a client and a server; a context. Raises DatapathError, RoutingError, OSError while it is made."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        try:
            self._make()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="idmesh-doctor-"))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        self._net = self._stack.enter_context(Network())
        ends = [self._net.add("client", _CLIENT), self._net.add("server", _SERVER)]
        cgroup = self._stack.enter_context(_cgroup())
        with self._net.node.inside():
            self._load(folder, ends, cgroup)
        self._stack.callback(self._clean)
        self._listener = self._stack.enter_context(self._listen(cgroup))

    def _load(self, folder: Path, ends: list[End], cgroup: Path) -> None:
        self._kernel = Datapath.open(folder / "bpf")
        Routing(folder / "routing.json").set()
        self._kernel.config(proxy_port=PORT, envoy_cgroup=cgroup.stat().st_ino)
        steering = Steering(self._kernel)
        steering.choose_listeners()
        steering.guard(cgroup, cgroup)
        for end in ends:
            Routing(folder / "routing.json").add(end.veth)
            self._kernel.attach(end.ifindex, end.addresses, peer_ifindex=end.peer_ifindex)
        compiled = Compiler(MemoryAllocator()).compile(load_text(_WORLD, "doctor.yaml").world)
        self._kernel.publish(compiled.snapshot)

    def _clean(self) -> None:
        with self._net.node.inside():
            self._kernel.cleanup()

    @contextlib.contextmanager
    def _listen(self, cgroup: Path) -> Iterator[subprocess.Popen[str]]:
        words = self._net.node.command([sys.executable, "-c", _LISTENER, str(cgroup), str(PORT)])
        made = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)
        try:
            assert made.stdout is not None
            if made.stdout.readline() != "ready\n":
                raise OSError(made.stderr.read().strip() if made.stderr else "the listener does not start")
            yield made
        finally:
            made.kill()
            made.communicate()

    def steers(self) -> str:
        """Why a connection of the client to the server does not arrive at the listener as it should; empty: it does."""
        with self._net.ends["client"].socket(2) as line:
            line.settimeout(_WAIT_S)
            with contextlib.suppress(OSError):
                line.connect((_SERVER, 80))
        assert self._listener.stdout is not None
        if not select.select([self._listener.stdout], [], [], _WAIT_S)[0]:
            return "it never arrived"
        said = self._listener.stdout.readline().split()
        return "" if said == [_CLIENT, _SERVER, "80"] else f"it arrived as {' '.join(said)}"

    def set(self, name: str, value: str) -> None:
        """A sysctl of the probe's node; {} in its name: of each interface."""
        with self._net.node.inside():
            for end in self._net.ends.values():
                Path("/proc/sys/net", name.format(end.veth)).write_text(value)


def host_value(name: str) -> str:
    """Of the namespace that the caller is in; empty: there is no such sysctl."""
    try:
        return Path("/proc/sys/net", name).read_text().strip()
    except OSError:
        return ""


def culprits(probe: Probe, interfaces: Iterable[str] = ()) -> list[str]:
    """
    Which of the host's sysctls keep the connection from arriving; the probe must work before any is set.

    All are set to the host's values; then what mends it is to blame, or all together if nothing does alone.

    Args:
        interfaces: Of the host's attached workloads; their own values are tried, too.
    """
    theirs = _differing(interfaces)
    for wanted in theirs.values():
        probe.set(wanted.name, wanted.value)
    reason = probe.steers()
    if not reason:
        return []
    found = [shown for shown, wanted in theirs.items() if _mends(probe, wanted)] or list(theirs)
    return [
        f"{shown}={theirs[shown].value} breaks steering ({reason}): set it to {theirs[shown].good}" for shown in found
    ]


class _Sysctl(NamedTuple):
    """name: with {} where the probe's interfaces go."""

    name: str
    value: str
    good: str


def _differing(interfaces: Iterable[str]) -> dict[str, _Sysctl]:
    """What this host has otherwise than it works elsewhere, by the name that the host has for it."""
    names = {name: (name, good) for name, good in SYSCTLS.items()}
    for interface in interfaces:
        names |= {name.format(interface): (name, good) for name, good in INTERFACE_SYSCTLS.items()}
    return {
        f"net.{theirs.replace('/', '.')}": _Sysctl(name, value, good)
        for theirs, (name, good) in names.items()
        if (value := host_value(theirs)) not in ("", good)
    }


def _mends(probe: Probe, wanted: _Sysctl) -> bool:
    probe.set(wanted.name, wanted.good)
    mended = not probe.steers()
    probe.set(wanted.name, wanted.value)
    return mended


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    base = cgroups.base()
    if base is None:
        raise OSError("no cgroup2 hierarchy is mounted")
    made = base / f"idmesh-doctor-{os.getpid()}"
    made.mkdir()
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            made.rmdir()
