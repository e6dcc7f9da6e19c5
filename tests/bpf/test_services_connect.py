# SPDX-License-Identifier: Apache-2.0
"""
Services of workloads whose cgroup is known: what their sockets ask for, what is sent, and what they are told.

Real sockets: the client is a process of a cgroup of the test's own, in a namespace with a node and servers around it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.bare import CGROUP, Bare, address, run_in, u32
from tests.bpf.net import End, Network, serve_greeting
from tests.bpf.service_rows import TCP, UDP, put_service

VIP4, VIP6 = "10.96.0.10", "fd96::10"
OTHER_VIP4 = "10.96.0.11"
HOOKS = {hook: hook for hook in CGROUP if hook.startswith(("connect", "sendmsg", "recvmsg", "getpeername"))}


@pytest.fixture
def bare(bpffs: Path) -> Iterator[Bare]:
    made = Bare(bpffs, "connect")
    try:
        yield made
    finally:
        made.close()


class Stage:
    """A client whose cgroup has the programs, and two servers."""

    def __init__(self, net: Network, cgroup: Path, bare: Bare) -> None:
        self.cgroup, self.bare, self.node = cgroup, bare, net.node
        self.client = net.add("client", "10.1.0.1", "fd00:1::1")
        self.servers = [net.add(f"s{n}", f"10.1.0.{n}", f"fd00:1::{n}") for n in (2, 3)]
        bare.attach(cgroup, **HOOKS)

    def ask(self, target: tuple[str, int], family: int = socket.AF_INET, protocol: int = 0) -> str:
        """Connect, and return the peer's address that the socket is told."""

        def connect() -> str:
            with socket.socket(family, socket.SOCK_STREAM, protocol) as line:
                line.settimeout(5)
                line.connect(target)
                return "{0[0]} {0[1]}".format(line.getpeername())

        return str(run_in(self.cgroup, self.client.space, connect))

    def ask_datagrams(self, targets: list[tuple[str, int]], family: int = socket.AF_INET) -> list[tuple[str, str]]:
        """Send from one unconnected socket to each and wait for its answer: (who the answer is from, its text)."""

        def send() -> list[tuple[str, str]]:
            found = []
            with socket.socket(family, socket.SOCK_DGRAM) as line:
                line.settimeout(5)
                for target in targets:
                    line.sendto(b"?", target)
                    data, where = line.recvfrom(100)
                    found.append((f"{where[0]} {where[1]}", data.decode()))
            return found

        answer: list[tuple[str, str]] = run_in(self.cgroup, self.client.space, send)
        return answer


@pytest.fixture
def stage(net: Network, cgroup: Path, bare: Bare) -> Stage:
    return Stage(net, cgroup, bare)


@contextlib.contextmanager
def echoing(end: End, where: str, port: int) -> Iterator[None]:
    """A process that answers datagrams with its own address and port."""
    import os

    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    with end.socket(family, socket.SOCK_DGRAM) as line:
        line.bind((where, port))
        child = os.fork()
        if not child:
            while True:
                line.sendto(f"{where} {port}".encode(), line.recvfrom(100)[1])
        try:
            yield
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


@pytest.mark.parametrize(("family", "vip", "version"), [(socket.AF_INET, VIP4, 4), (socket.AF_INET6, VIP6, 6)])
def test_a_socket_reaches_a_backend_and_is_told_the_service(stage: Stage, family: int, vip: str, version: int) -> None:
    backend = stage.servers[0].address(version)
    put_service(stage.bare, (vip, 80), [(backend, 8080)], 1)
    with serve_greeting(stage.servers[0], backend, 8080) as listener:
        assert stage.ask((vip, 80), family) == f"{vip} 80"
        accepted, peer = listener.accept()
        accepted.close()
    assert peer[0] == stage.client.address(version)


def test_an_ipv6_socket_reaches_an_ipv4_service(stage: Stage) -> None:
    backend = stage.servers[0].address()
    put_service(stage.bare, (VIP4, 80), [(backend, 8080)], 1)
    with serve_greeting(stage.servers[0], backend, 8080):
        assert stage.ask((f"::ffff:{VIP4}", 80), socket.AF_INET6) == f"::ffff:{VIP4} 80"


def test_multipath_tcp_is_translated_like_tcp(stage: Stage) -> None:
    backend = stage.servers[0].address()
    put_service(stage.bare, (VIP4, 80), [(backend, 8080)], 1)
    with serve_greeting(stage.servers[0], backend, 8080) as listener:
        stage.ask((VIP4, 80), protocol=262)
        listener.accept()[0].close()


def test_other_ports_of_a_service_address_stay_as_asked(stage: Stage) -> None:
    other = stage.servers[1]
    put_service(stage.bare, (VIP4, 80), [(stage.servers[0].address(), 8080)], 1)
    other.space.ip([f"address add {VIP4}/32 dev lo"])
    stage.node.ip([f"route add {VIP4} dev {other.veth}"])
    with serve_greeting(other, VIP4, 81) as listener:
        assert stage.ask((VIP4, 81)) == f"{VIP4} 81"
        listener.accept()[0].close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_node_port_is_one_of_every_address_of_the_host(stage: Stage, version: int) -> None:
    backend = stage.servers[1].address(version)
    host = {4: "172.18.0.5", 6: "fd18::5"}[version]
    put_service(stage.bare, ({4: "0.0.0.0", 6: "::"}[version], 30080), [(backend, 8080)], 4)
    stage.bare.update("locals", address(host), u32(1))
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with serve_greeting(stage.servers[1], backend, 8080):
        assert stage.ask((host, 30080), family) == f"{host} 30080"


@pytest.mark.parametrize("target", ["172.18.0.6", "127.0.0.1", "0.0.0.0"])
def test_no_address_but_the_hosts_has_node_ports(stage: Stage, target: str) -> None:
    put_service(stage.bare, ("0.0.0.0", 30080), [(stage.servers[1].address(), 8080)], 4)
    stage.client.space.ip(["route add blackhole 172.18.0.6"])
    with serve_greeting(stage.servers[1], stage.servers[1].address(), 8080), pytest.raises(OSError):
        stage.ask((target, 30080))


def test_the_unspecified_address_is_no_node_port(stage: Stage) -> None:
    put_service(stage.bare, ("::", 30080), [(stage.servers[1].address(6), 8080)], 4)
    with serve_greeting(stage.servers[1], stage.servers[1].address(6), 8080), pytest.raises(ConnectionRefusedError):
        stage.ask(("::", 30080), socket.AF_INET6)


@pytest.mark.parametrize(("family", "vip"), [(socket.AF_INET, VIP4), (socket.AF_INET6, VIP6)])
def test_a_service_without_backends_refuses(stage: Stage, family: int, vip: str) -> None:
    for protocol in (TCP, UDP):
        put_service(stage.bare, (vip, 80), [], 1, protocol)
    with pytest.raises(ConnectionRefusedError):
        stage.ask((vip, 80), family)
    with pytest.raises(ConnectionRefusedError):
        stage.ask_datagrams([(vip, 80)], family)


def test_a_row_of_another_service_is_never_used(stage: Stage) -> None:
    backend = stage.servers[0].address()
    put_service(stage.bare, (OTHER_VIP4, 80), [(backend, 8080)], 2, first=32)
    put_service(stage.bare, (VIP4, 80), [], 1)
    stage.bare.update("services", address(VIP4) + struct.pack("=HBB", 80, TCP, 0), struct.pack("=IIII", 32, 1, 0, 1))
    with serve_greeting(stage.servers[0], backend, 8080):
        with pytest.raises(ConnectionRefusedError):
            stage.ask((VIP4, 80))
        stage.ask((OTHER_VIP4, 80))


def test_a_backend_of_another_ip_version_or_protocol_is_refused(stage: Stage) -> None:
    put_service(stage.bare, (VIP4, 80), [(stage.servers[0].address(6), 8080)], 1)
    put_service(stage.bare, (VIP6, 80), [(stage.servers[0].address(4), 8080)], 2)
    for vip, family in ((VIP4, socket.AF_INET), (VIP6, socket.AF_INET6)):
        with pytest.raises(ConnectionRefusedError):
            stage.ask((vip, 80), family)


def test_connections_spread_over_the_backends(stage: Stage) -> None:
    places = [(server.address(), 8080) for server in stage.servers]
    put_service(stage.bare, (VIP4, 80), places, 1)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(serve_greeting(s, s.address(), 8080)) for s in stage.servers]
        for _ in range(40):
            stage.ask((VIP4, 80))
        assert all(select.select([listener], [], [], 0)[0] for listener in listeners)


def _count(listener: socket.socket) -> int:
    found = 0
    while select.select([listener], [], [], 0)[0]:
        listener.accept()[0].close()
        found += 1
    return found


def test_affinity_keeps_a_client_at_its_backend_until_it_goes_or_expires(stage: Stage) -> None:
    places = [(server.address(), 8080) for server in stage.servers]
    put_service(stage.bare, (VIP4, 80), places, 1, affinity_s=600)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(serve_greeting(s, s.address(), 8080)) for s in stage.servers]
        for _ in range(12):
            stage.ask((VIP4, 80))
        counts = [_count(listener) for listener in listeners]
        assert sorted(counts) == [0, 12]
        kept = counts.index(12)

        # Another order, another run of rows: the client stays.
        put_service(stage.bare, (VIP4, 80), places[::-1], 1, affinity_s=600, first=64)
        for _ in range(8):
            stage.ask((VIP4, 80))
        assert _count(listeners[kept]) == 8

        # A client that was away for too long is as good as new.
        rows = stage.bare.read("affinity", 20, 28)
        assert len(rows) == 1
        for key, row in rows.items():
            stage.bare.update(
                "affinity", key, row[:24] + struct.pack("=I", (struct.unpack("=I", row[24:])[0] - 601) % 2**32)
            )
        before = next(iter(stage.bare.read("affinity", 20, 28).values()))
        stage.ask((VIP4, 80))
        assert next(iter(stage.bare.read("affinity", 20, 28).values()))[24:] != before[24:]
        for listener in listeners:
            _count(listener)

        # Whichever it has now goes.
        held = next(iter(stage.bare.read("affinity", 20, 28).values()))[:16]
        left = next(place for place in places if address(place[0]) != held)
        put_service(stage.bare, (VIP4, 80), [left], 1, affinity_s=600, first=96)
        stage.ask((VIP4, 80))
        assert [_count(listener) for listener in listeners] == [int(place == left) for place in places]


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_are_answered_by_the_service_that_was_asked(stage: Stage, version: int) -> None:
    family, vips = {4: (socket.AF_INET, ("10.96.0.1", "10.96.0.2")), 6: (socket.AF_INET6, ("fd96::1", "fd96::2"))}[
        version
    ]
    backends = [server.address(version) for server in stage.servers]
    for number, (vip, backend) in enumerate(zip(vips, backends, strict=True), 1):
        put_service(stage.bare, (vip, 53), [(backend, 5353)], number, UDP)
    with echoing(stage.servers[0], backends[0], 5353), echoing(stage.servers[1], backends[1], 5353):
        asked = [(vips[0], 53), (vips[1], 53), (vips[0], 53), (backends[0], 5353)]
        found = stage.ask_datagrams(asked, family)
    assert [text for _, text in found] == [f"{backends[n]} 5353" for n in (0, 1, 0, 0)]
    assert [source for source, _ in found[:3]] == [f"{vips[n]} 53" for n in (0, 1, 0)]


def test_datagrams_of_one_socket_stay_at_one_backend(stage: Stage) -> None:
    backends = [server.address() for server in stage.servers]
    put_service(stage.bare, (VIP4, 53), [(backend, 5353) for backend in backends], 1, UDP)
    with echoing(stage.servers[0], backends[0], 5353), echoing(stage.servers[1], backends[1], 5353):
        for _ in range(4):
            assert len({text for _, text in stage.ask_datagrams([(VIP4, 53)] * 8)}) == 1


def test_a_connected_datagram_socket_is_told_the_service(stage: Stage) -> None:
    backend = stage.servers[0].address()
    put_service(stage.bare, (VIP4, 53), [(backend, 5353)], 1, UDP)

    def ask() -> tuple[str, str]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.settimeout(5)
            line.connect((VIP4, 53))
            line.send(b"?")
            return line.recvfrom(100)[1][0], line.getpeername()[0]

    with echoing(stage.servers[0], backend, 5353):
        assert run_in(stage.cgroup, stage.client.space, ask) == (VIP4, VIP4)


def test_child_cgroups_are_translated_and_others_never(stage: Stage, cgroup: Path) -> None:
    backend = stage.servers[0].address()
    put_service(stage.bare, (VIP4, 80), [(backend, 8080)], 1)

    def connect() -> bool:
        with socket.socket() as line:
            line.settimeout(0.3)
            line.connect((VIP4, 80))
        return True

    (cgroup / "child").mkdir()
    with serve_greeting(stage.servers[0], backend, 8080):
        assert run_in(cgroup / "child", stage.client.space, connect)
        with pytest.raises(OSError):
            run_in(cgroup.parent, stage.client.space, connect)
