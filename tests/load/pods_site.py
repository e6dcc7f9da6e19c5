# SPDX-License-Identifier: Apache-2.0
"""
Two pods on a node, and the ways between them: put one on, load it, take it off again.

All ways use the same namespaces and veths, so that only the programs on them differ.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ext_authz.agent.datapath_events import Events
from ext_authz.agent.datapath_process import OBJECTS_VARIABLE
from ext_authz.datapath import Datapath, DatapathError
from ext_authz.play.netns import NoNamespace
from ext_authz.play.network import GATEWAY4, GATEWAY6, End, Network
from tests.bpf.bare import Bare
from tests.bpf.net import own_cgroup, unmount
from tests.bpf.state import CGROUPS
from tests.load import machine
from tests.load.flows import snapshot_of
from tests.load.generate import Object, Scale, scale
from tests.load.programs import build, build_bpf
from tests.load.proxies import REST_CORE, WORKER_CORE

CLIENT, SERVER, PORT = "10.200.0.1", "10.200.0.2", 8080
EVENTS_ALLOWED, PEER_REDIRECT = 1, 2
_TCX_INGRESS, _SOCK_OPS, _SK_MSG_VERDICT = 46, 3, 7
_libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)


@dataclass(frozen=True)
class Sample:
    """One run of load: units a second, and CPU of both ends and of the kernel's own threads for each."""

    rate: float
    cpu_ns: float


class Pods:
    """Client and server, attached to nothing until `on` says so."""

    def __init__(self, stack: ExitStack, folder: Path, endpoints: int) -> None:
        self._folder = folder
        self._net = stack.enter_context(Network())
        self._client, self._server = self._net.add("client", CLIENT), self._net.add("server", SERVER)
        # A minute of TIME_WAIT would leave the client without ports.
        self._client.space.sysctl("ipv4.tcp_max_tw_buckets", 64)
        self._client.space.sysctl("ipv4.ip_local_port_range", "1024 65000")
        self._cgroup = stack.enter_context(own_cgroup(CGROUPS, folder.name))
        with self._net.node.inside():
            self._datapath = Datapath.open(folder / "bpf", objects())
        stack.callback(lambda: self._datapath.cleanup(self._net.node.descriptor))
        self._datapath.locals([GATEWAY4, GATEWAY6])
        self._datapath.publish(snapshot(endpoints))
        self._bare = Bare(folder / "bpf", str(build_bpf("pods", folder).with_suffix("").with_suffix("")))
        stack.callback(self._bare.close)
        for end, address in ((self._client, CLIENT), (self._server, SERVER)):
            self._bare.update("places", ip_address(address).packed, struct.pack("=I", end.ifindex))
        self._program = build("pairs", folder)
        self._serving = stack.enter_context(self._serve())

    # ---- the ways ----

    @contextmanager
    def on(self, way: str) -> Iterator[None]:
        """The programs of a way are on the veths meanwhile."""
        with ExitStack() as stack:
            stack.enter_context(getattr(self, f"_{way}")())
            yield

    @contextmanager
    def _veth(self) -> Iterator[None]:
        yield

    @contextmanager
    def _bare_redirect(self) -> Iterator[None]:
        with ExitStack() as stack:
            for end in (self._client, self._server):
                with self._net.node.inside():
                    stack.enter_context(self._link("redirect_bare", end.ifindex, _TCX_INGRESS))
            yield

    @contextmanager
    def _judged(self, flags: int = PEER_REDIRECT) -> Iterator[None]:
        self._datapath.config(flags=flags)
        ends = (self._client, self._server)
        with self._net.node.inside():
            for end in ends:
                self._attach(end)
        try:
            yield
        finally:
            with self._net.node.inside():
                for end in ends:
                    self._datapath.detach(end.ifindex)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """With an event for every allowed connection, taken meanwhile as the agent takes them."""
        events = Events(lambda wait_ms: self._datapath.events(timeout_ms=wait_ms), self._folder / "no-observer")
        with self._judged(PEER_REDIRECT | EVENTS_ALLOWED):
            events.start()
            try:
                yield
            finally:
                events.stop()

    @contextmanager
    def _sockmap(self) -> Iterator[None]:
        """Judged, and what is sent over an open connection goes from socket to socket."""
        verdict, sockets = self._bare.program("cut_short"), self._bare.map("sockets")
        cgroup = os.open(self._cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libbpf.bpf_prog_attach(verdict, sockets, _SK_MSG_VERDICT, 0):
                raise OSError(ctypes.get_errno(), "sk_msg at the sockets")
            with self._judged(), self._link("remember_socket", cgroup, _SOCK_OPS):
                yield
            _libbpf.bpf_prog_detach2(verdict, sockets, _SK_MSG_VERDICT)
        finally:
            os.close(cgroup)

    def _attach(self, end: End) -> None:
        self._datapath.attach(end.ifindex, end.addresses, end.mac, peer_ifindex=end.peer_ifindex)

    @contextmanager
    def _link(self, program: str, target: int, kind: int) -> Iterator[None]:
        made = _libbpf.bpf_link_create(self._bare.program(program), target, kind, None)
        if made < 0:
            raise OSError(ctypes.get_errno(), f"{program} cannot be attached")
        try:
            yield
        finally:
            os.close(made)

    # ---- the load ----

    def load(self, kind: str, seconds: float, at_once: int) -> Sample:
        """kind: connections, requests or stream."""
        argv = [kind, SERVER, str(PORT), f"{seconds:g}", str(at_once)]
        before = self._cpu_ns()
        done = subprocess.run(self._command(self._client, REST_CORE, argv), capture_output=True, text=True, check=False)
        used = self._cpu_ns() - before
        if done.returncode:
            raise RuntimeError(f"{kind}: {done.stderr.strip()}")
        count, wall_ns, cpu_ns = map(int, done.stdout.split())
        return Sample(count / wall_ns * 1e9, (used + cpu_ns) / count)

    def counted(self) -> int:
        """Packets that our programs have let pass."""
        return sum(one.packets for one in self._datapath.counters()[0] if not one.drop_reason)

    def _cpu_ns(self) -> int:
        return sum(round(machine.cpu_seconds(task) * 1e9) for task in (self._serving, *_softirq_threads()))

    def _command(self, end: End, core: int, words: list[str]) -> list[str]:
        inside = end.command(["taskset", "-c", str(core), str(self._program), *words])
        return ["sh", "-c", f'echo $$ >{self._cgroup}/cgroup.procs && exec "$@"', "sh", *inside]

    @contextmanager
    def _serve(self) -> Iterator[Path]:
        argv = self._command(self._server, WORKER_CORE, ["serve", SERVER, str(PORT)])
        process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the server does not listen")
            yield Path(f"/proc/{process.pid}")
        finally:
            process.kill()
            process.wait()


@contextmanager
def pods(endpoints: int) -> Iterator[Pods]:
    """The two and everything they stand on, gone afterwards."""
    if not (CGROUPS / "cgroup.procs").exists():
        raise machine.Missing(f"a cgroup2 hierarchy at {CGROUPS}")
    folder = Path(tempfile.mkdtemp(prefix="idmesh-load-"))
    try:
        with ExitStack() as stack:
            yield _started(lambda: Pods(stack, folder, endpoints))
    finally:
        unmount(folder)
        shutil.rmtree(folder)


def _started(make: Callable[[], Pods]) -> Pods:
    try:
        return make()
    except (DatapathError, NoNamespace) as error:
        raise machine.Missing(str(error)) from error


def objects() -> Path | None:
    """The folder of *.bpf.o, if they are not those of the package."""
    return Path(os.environ[OBJECTS_VARIABLE]) if OBJECTS_VARIABLE in os.environ else None


def _softirq_threads() -> Iterator[Path]:
    for core in (WORKER_CORE, REST_CORE):
        for found in Path("/proc").glob("[0-9]*/comm"):
            try:
                if found.read_text().strip() == f"ksoftirqd/{core}":
                    yield found.parent
                    break
            except OSError:  # ended meanwhile
                continue


def snapshot(endpoints: int) -> bytes:
    """The pods, both directions of theirs under policy, among others."""
    found = scale(Scale(0, endpoints, max(1, endpoints // 5)))
    found.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "pods"}})
    port = {"ports": [{"port": str(PORT), "endPort": PORT + 1, "protocol": "TCP"}]}
    for name, address, side, peer, word in (
        ("client", CLIENT, "egress", "server", "toEndpoints"),
        ("server", SERVER, "ingress", "client", "fromEndpoints"),
    ):
        rule = {word: [{"matchLabels": {"app": peer}}], "toPorts": [port]}
        spec = {"endpointSelector": {"matchLabels": {"app": name}}, side: [rule]}
        found += [_pod(name, address), _policy(name, spec)]
    return snapshot_of(found)


def _pod(name: str, address: str) -> Object:
    metadata = {"name": name, "namespace": "pods", "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"podIPs": [{"ip": address}]}}


def _policy(name: str, spec: Object) -> Object:
    metadata = {"name": name, "namespace": "pods"}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}
