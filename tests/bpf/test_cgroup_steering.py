# SPDX-License-Identifier: Apache-2.0
"""Requests of workloads without a namespace, judged in a real Envoy and seen by servers as theirs."""

from __future__ import annotations

import http.client
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from ext_authz.datapath._datapath import ffi, lib

from tests.bpf.bare import CGROUP, ROOT, address, run_in
from tests.bpf.cgroup_site import HOST, PACKETS, SHARED, SOCKETS, allow
from tests.bpf.net import serve_greeting
from tests.bpf.steered import PROXY, Steered, http_server

pytestmark = pytest.mark.needs_envoy

SERVER, SERVER6, UNIT, UNIT6 = "10.1.0.2", "fd00:1::2", "10.2.0.1", "fd00:2::1"
_SOCK_OPS = 3


class Site(Steered):
    """A node that steers, with the workload `unit`."""

    def __init__(self, folder: Path, cgroup: Path, addresses: tuple[str, ...]) -> None:
        super().__init__(folder, cgroup)
        self.unit = cgroup / "unit"
        self.unit.mkdir()
        self._addresses = addresses
        self._pods["unit"] = addresses or ("fd1d:6d65:7368::1",)
        own = [f"address add {one} dev lo{' nodad' if ':' in one else ''}" for one in (HOST, *addresses)]
        self.net.node.ip(own)
        self.kernel.locals((HOST,))
        log = ffi.new("char[]", 1 << 16)
        for name in ("workload_cgroup", "workload_sockets", "original_destination"):
            path = str(ROOT / f"build/bpf/{name}.bpf.o").encode()
            done = lib.idm_datapath_load(self.kernel._all, path, log, 1 << 16, 0, self.kernel._error)
            assert not done, ffi.string(log).decode()[-3000:]
        for hook, program in (PACKETS | SOCKETS).items():
            self.kernel._link_folder(program, str(self.unit), CGROUP[hook])
        self.kernel._link_folder("workload_opened", str(self.unit), _SOCK_OPS)
        self.kernel._link_folder("original_destination", str(self.envoy_cgroup), CGROUP["getsockopt"])

    def apply(self, policies: str) -> int:
        revision = super().apply(policies)
        first = self._pods["unit"][0]
        four = address(first) if ":" not in first else bytes(16)
        six = address(next((one for one in self._pods["unit"] if ":" in one), "::"))
        flags = 0 if self._addresses else SHARED
        row = struct.pack("=II16s16sII", self.identity(first), 7, four, six, flags, 0)
        self.kernel.update("workloads", struct.pack("=Q", os.stat(self.unit).st_ino), row)
        return revision

    def request(self, where: str, path: str) -> int:
        """The answer's status to a process of the workload; 0: the connection came to nothing."""

        def ask() -> int:
            line = http.client.HTTPConnection(where, 8080, timeout=5)
            line.request("GET", path)
            answer = line.getresponse()
            # Whoever leaves before the end of it makes Envoy give up its connection to the server.
            answer.read()
            return answer.status

        try:
            return int(run_in(self.unit, self.net.node, ask))
        except OSError:
            return 0


@pytest.fixture
def addresses() -> tuple[str, ...]:
    return (UNIT, UNIT6)


@pytest.fixture
def site(folder: Path, cgroup: Path, addresses: tuple[str, ...]) -> Iterator[Site]:
    with Site(folder, cgroup, addresses) as made:
        yield made


def start(site: Site, policies: str, concurrency: int = 2) -> None:
    from ext_authz.envoy_binary import find_envoy

    site.apply(policies)
    site.start(find_envoy(), concurrency=concurrency)


@pytest.mark.parametrize("addresses", [(UNIT, UNIT6), ()], ids=["own", "shared"])
def test_requests_are_judged_and_come_from_the_workload(site: Site, addresses: tuple[str, ...]) -> None:
    server = site.add("server", SERVER, SERVER6)
    start(site, allow("unit", "server", 8080, egress=True, http="/a"))
    with http_server(server, 8080) as seen:
        assert site.request(SERVER, "/a") == 200
        assert site.request(SERVER, "/b") == 403
        if addresses:
            assert site.request(SERVER6, "/a") == 200
    assert [one.path for one in seen.seen] == ["/a"] * (2 if addresses else 1)
    assert seen.seen[0].peer in ((UNIT,) if addresses else (HOST, "169.254.1.1"))


@pytest.mark.parametrize("addresses", [(UNIT, UNIT6), ()], ids=["own", "shared"])
def test_envoys_connection_to_the_server_outlives_a_revision(site: Site) -> None:
    server = site.add("server", SERVER, SERVER6)
    policies = allow("unit", "server", 8080, egress=True, http="/a")
    start(site, policies, concurrency=1)
    with http_server(server, 8080):
        assert site.request(SERVER, "/a") == 200
        site.wait_for(site.apply(policies))
        assert site.request(SERVER, "/a") == 200
    assert site.stat("cluster.upstream.upstream_cx_total") == 1


def test_ingress_of_the_server_is_judged_by_the_workloads_identity(site: Site) -> None:
    server = site.add("server", SERVER)
    start(site, allow("server", "unit", 8080, http="/a"))
    with http_server(server, 8080):
        assert site.request(SERVER, "/a") == 200
        assert site.request(SERVER, "/b") == 403
        site.apply(allow("server", "other", 8080, http="/a"))
        assert site.request(SERVER, "/a") == 0


def test_without_envoy_nothing_is_let_past(site: Site) -> None:
    server = site.add("server", SERVER)
    start(site, allow("unit", "server", 8080, egress=True, http="/a"))
    site.stop()
    with serve_greeting(server, SERVER, 8080) as listener:
        assert site.request(SERVER, "/a") == 0
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize(
    ("target", "proxy", "level", "shape"),
    [
        (SERVER, "127.0.0.1", socket.SOL_IP, "=H2s4s8x"),
        (SERVER6, "::1", socket.IPPROTO_IPV6, "=H2s4x16s4x"),
    ],
)
def test_whoever_asks_as_behind_a_firewall_is_told_the_original_destination(
    site: Site, target: str, proxy: str, level: int, shape: str
) -> None:
    site.add("server", SERVER, SERVER6)
    site.apply(allow("unit", "server", 8080, egress=True, http="/a"))
    family = socket.AF_INET6 if ":" in proxy else socket.AF_INET
    ready, told = os.pipe()

    def accept() -> tuple[bytes, str]:
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_IP, 19, 1) if family == socket.AF_INET else listener.setsockopt(41, 75, 1)
            listener.bind((proxy, PROXY))
            with pytest.raises(OSError):
                listener.getsockopt(level, 80, 28)
            listener.listen()
            os.write(told, b"x")
            listener.settimeout(5)
            with listener.accept()[0] as line:
                return line.getsockopt(level, 80, 28), line.getsockname()[0]

    child = os.fork()
    if not child:
        os.close(told)
        os.read(ready, 1)
        site.request(target, "/a")
        os._exit(0)
    try:
        answer, own = run_in(site.envoy_cgroup, site.net.node, accept)
    finally:
        os.close(told)
        os.waitpid(child, 0)
        os.close(ready)
    kind, port, where = struct.unpack(shape, answer)
    assert (kind, int.from_bytes(port, "big"), socket.inet_ntop(family, where)) == (family, 8080, target)
    assert own == target
