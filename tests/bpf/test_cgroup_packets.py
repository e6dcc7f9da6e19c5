# SPDX-License-Identifier: Apache-2.0
"""Workloads without a namespace: every packet of their cgroup is judged, from the first one on."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.bare import run_in
from tests.bpf.cgroup_site import HOST, HOST6, CgroupSite, allow
from tests.bpf.net import Capture, serve_greeting

SERVER, SERVER6, UNIT, UNIT6 = "10.1.0.2", "fd00:1::2", "10.2.0.1", "fd00:2::1"
EVERYTHING = allow("unit", "server", 80, egress=True) + allow("server", "unit", 80)
OWN_AND_SHARED = pytest.mark.parametrize("addresses", [(UNIT, UNIT6), ()], ids=["own", "shared"])
DENIED, INVALID, UNKNOWN_SENDER, NO_PROXY = 133, 134, 172, 180
EGRESS, INGRESS = 1, 0


@pytest.fixture
def site(folder: Path, cgroup: Path) -> Iterator[CgroupSite]:
    with CgroupSite(folder, cgroup) as made:
        yield made


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def connect(target: tuple[str, int], source: tuple[str, int] = ("", 0), timeout_s: float = 1.5, mark: int = 0) -> str:
    """The own address of a connection that came about."""
    with socket.socket(family_of(target[0])) as line:
        line.settimeout(timeout_s)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if mark:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if source != ("", 0):
            line.bind(source)
        line.connect(target)
        return str(line.getsockname()[0])


def ask(target: tuple[str, int], timeout_s: float = 1.5) -> bytes:
    """Send a datagram from an unconnected socket and wait for its answer."""
    with socket.socket(family_of(target[0]), socket.SOCK_DGRAM) as line:
        line.settimeout(timeout_s)
        line.sendto(b"?", target)
        return line.recvfrom(100)[0]


@contextlib.contextmanager
def answering(line: socket.socket) -> Iterator[None]:
    """A process that answers datagrams with the sender's address."""
    child = os.fork()
    if not child:
        while True:
            where = line.recvfrom(100)[1]
            with contextlib.suppress(OSError):
                line.sendto(where[0].encode(), where)
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


class TestEgress:
    @OWN_AND_SHARED
    @pytest.mark.parametrize("target", [SERVER, SERVER6])
    def test_what_policy_allows_passes_and_nothing_else(
        self, site: CgroupSite, addresses: tuple[str, ...], target: str
    ) -> None:
        server = site.pod("server", SERVER, SERVER6)
        site.workload("unit", *addresses)
        site.apply(EVERYTHING)
        with serve_greeting(server, target, 80) as listener, serve_greeting(server, target, 81):
            own = site.run("unit", lambda: connect((target, 80)))
            accepted, peer = listener.accept()
            accepted.close()
            assert peer[0] == own
            if addresses:
                assert own in addresses
            with pytest.raises(PermissionError):
                site.run("unit", lambda: connect((target, 81)))
            assert site.drops()[DENIED, EGRESS] == 1

    @OWN_AND_SHARED
    def test_the_receivers_policy_counts_as_well(self, site: CgroupSite, addresses: tuple[str, ...]) -> None:
        server = site.pod("server", SERVER)
        site.workload("unit", *addresses)
        site.apply(allow("unit", "server", 80, egress=True) + allow("server", "other", 80))
        with serve_greeting(server, SERVER, 80), pytest.raises(PermissionError):
            site.run("unit", lambda: connect((SERVER, 80)))

    @OWN_AND_SHARED
    def test_datagrams_are_judged_one_by_one(self, site: CgroupSite, addresses: tuple[str, ...]) -> None:
        server = site.pod("server", SERVER)
        site.workload("unit", *addresses)
        site.apply(allow("unit", "server", 53, "UDP", egress=True) + allow("server", "unit", 53, "UDP"))
        line = server.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with line:
            line.bind((SERVER, 53))
            with answering(line):
                source = site.run("unit", lambda: ask((SERVER, 53))).decode()
                assert source == UNIT if addresses else source != UNIT
                with pytest.raises(PermissionError):
                    site.run("unit", lambda: ask((SERVER, 54)))

    def test_the_host_and_a_workload_at_its_address_are_not_each_other(self, site: CgroupSite) -> None:
        server = site.pod("server", SERVER)
        site.workload("unit")
        site.apply(EVERYTHING)
        with serve_greeting(server, SERVER, 80):
            site.run("unit", lambda: connect((SERVER, 80)))
            with pytest.raises(TimeoutError):
                site.run("", lambda: connect((SERVER, 80)))
            site.apply(allow("server", "host", 80))
            with pytest.raises(PermissionError):
                site.run("unit", lambda: connect((SERVER, 80)))
            site.run("", lambda: connect((SERVER, 80)))

    def test_a_port_used_again_by_somebody_else_is_judged_again(self, site: CgroupSite) -> None:
        server = site.pod("server", SERVER)
        site.workload("unit")
        site.workload("other")
        site.apply(allow("unit", "server", 53, "UDP", egress=True) + allow("server", "unit", 53, "UDP"))

        def speak(text: bytes) -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
                line.bind((HOST, 40000))
                line.sendto(text, (SERVER, 53))

        with Capture(server) as capture:
            site.run("unit", lambda: speak(b"first"))
            capture.wait(b"first")
            with pytest.raises(PermissionError):
                site.run("other", lambda: speak(b"second"))
            with contextlib.suppress(OSError):
                site.run("", lambda: speak(b"third"))
            site.run("unit", lambda: speak(b"fourth"))
            capture.wait(b"fourth")
            assert not capture.having(b"second") + capture.having(b"third")

    def test_a_policy_that_denies_now_ends_a_connection(self, site: CgroupSite) -> None:
        server = site.pod("server", SERVER)
        site.workload("unit", UNIT)
        site.apply(EVERYTHING)
        with serve_greeting(server, SERVER, 80) as listener:
            ready, go = os.pipe()

            def talk() -> str:
                with socket.socket() as line:
                    line.settimeout(1.5)
                    line.connect((SERVER, 80))
                    line.send(b"1")
                    os.read(ready, 1)
                    line.send(b"2")
                    return line.recv(1).decode()

            child = os.fork()
            if not child:
                with contextlib.suppress(BaseException):
                    site.run("unit", talk)
                    os._exit(0)
                os._exit(1)
            with listener.accept()[0] as line:
                line.settimeout(5)
                assert line.recv(1) == b"1"
                site.apply(allow("unit", "other", 80, egress=True))
                os.write(go, b"x")
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
                line.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    line.recv(1)
            os.close(ready)
            os.close(go)
        assert site.drops()[DENIED, EGRESS] >= 1

    def test_loopback_is_the_host(self, site: CgroupSite) -> None:
        site.workload("unit")
        with site.node.socket(socket.AF_INET) as listener:
            listener.bind(("127.0.0.1", 80))
            listener.listen()
            site.apply(allow("unit", "host", 80, egress=True))
            site.run("unit", lambda: connect(("127.0.0.1", 80)))
            site.apply(allow("unit", "world", 80, egress=True))
            with pytest.raises(PermissionError):
                site.run("unit", lambda: connect(("127.0.0.1", 80)))

    def test_what_needs_envoy_is_refused_without_one(self, site: CgroupSite) -> None:
        server = site.pod("server", SERVER)
        site.workload("unit", UNIT)
        site.apply(allow("unit", "server", 80, egress=True, http="/"))
        with serve_greeting(server, SERVER, 80), pytest.raises(PermissionError):
            site.run("unit", lambda: connect((SERVER, 80)))
        assert site.drops()[NO_PROXY, EGRESS] == 1


class TestIngress:
    @pytest.mark.parametrize("addresses", [(UNIT, UNIT6), ()], ids=["own", "shared"])
    @pytest.mark.parametrize("version", [4, 6])
    def test_only_whom_policy_allows_reaches_it(
        self, site: CgroupSite, addresses: tuple[str, ...], version: int
    ) -> None:
        friend, stranger = site.pod("friend", "10.1.0.3", "fd00:1::3"), site.pod("stranger", "10.1.0.4", "fd00:1::4")
        site.workload("unit", *addresses)
        site.apply(allow("unit", "friend", 80))
        target = {4: addresses[0] if addresses else HOST, 6: addresses[1] if addresses else HOST6}[version]
        with self.listening(site, "unit", target):
            for end, reached in ((friend, True), (stranger, False)):
                with end.socket(family_of(target)) as line:
                    line.settimeout(2 if reached else 0.5)
                    if reached:
                        line.connect((target, 80))
                        assert line.recv(5) == b"hello"
                    else:
                        with pytest.raises(OSError):
                            line.connect((target, 80))

    def test_processes_of_the_host_are_the_host(self, site: CgroupSite) -> None:
        site.workload("unit", UNIT)
        site.apply(allow("unit", "friend", 80))
        with self.listening(site, "unit", UNIT):
            with pytest.raises(OSError):
                site.run("", lambda: connect((UNIT, 80), timeout_s=0.5))
            site.apply(allow("unit", "host", 80))
            site.run("", lambda: connect((UNIT, 80)))

    def test_workloads_of_one_host_are_told_apart(self, site: CgroupSite) -> None:
        for name, address in (("unit", UNIT), ("friend", "10.2.0.2"), ("stranger", "10.2.0.3"), ("shared", "")):
            site.workload(name, *filter(None, [address]))
        site.apply(allow("unit", "friend", 80) + allow("unit", "shared", 80).replace("unit-in", "more-in"))
        with self.listening(site, "unit", UNIT):
            site.run("friend", lambda: connect((UNIT, 80)))
            site.run("shared", lambda: connect((UNIT, 80)))
            with pytest.raises(OSError):
                site.run("stranger", lambda: connect((UNIT, 80), timeout_s=0.5))

    def test_nobody_answers_at_another_workloads_address(self, site: CgroupSite) -> None:
        client = site.pod("client", "10.1.0.3")
        site.workload("unit", UNIT)
        site.workload("thief", "10.2.0.2")
        site.apply()
        with pytest.raises(OSError) as caught:
            site.run("thief", lambda: connect((UNIT, 1), (UNIT, 80)))
        assert caught.value.errno == errno.EADDRNOTAVAIL
        with self.listening(site, "thief", "0.0.0.0"), client.socket(socket.AF_INET) as line:
            line.settimeout(0.5)
            with pytest.raises(OSError):
                line.connect((UNIT, 80))

    @contextlib.contextmanager
    def listening(self, site: CgroupSite, name: str, address: str) -> Iterator[None]:
        """A server of the workload that greets whoever comes."""
        ready, go = os.pipe()
        child = os.fork()
        if not child:
            site.run(name, lambda: _greet(address, go))
            os._exit(0)
        assert os.read(ready, 10), "the server did not start"
        pids = (site.cgroup / name / "cgroup.procs").read_text().split()
        try:
            yield
        finally:
            for pid in (*map(int, pids), child):
                os.kill(pid, 9)
            os.waitpid(child, 0)
            os.close(ready)
            os.close(go)


def _greet(address: str, ready: int) -> None:
    with socket.socket(family_of(address)) as listener:
        listener.bind((address, 80))
        listener.listen()
        os.write(ready, b"x")
        while True:
            line, _ = listener.accept()
            with contextlib.suppress(OSError):
                line.send(b"hello")
            line.close()


class TestBeforeIdentity:
    def test_nothing_leaves_a_cgroup_that_nobody_told_of(self, site: CgroupSite) -> None:
        server = site.outside("server", SERVER)
        site.workload("unit", UNIT)
        (site.cgroup / "unit" / "child" / "grandchild").mkdir(parents=True)
        site.apply()
        site.forget("unit")
        with Capture(server) as capture, server.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.bind((SERVER, 80))
            for place in ("", "child", "child/grandchild"):
                for speak in (lambda: connect((SERVER, 80)), lambda: ask((SERVER, 80))):
                    with pytest.raises(PermissionError):
                        run_in(site.cgroup / "unit" / place, site.node, speak)
            site.tell("unit")
            with pytest.raises(TimeoutError):
                run_in(site.cgroup / "unit/child/grandchild", site.node, lambda: ask((SERVER, 80), 0.3))
            capture.wait(b"?")
            assert len(capture.having(socket.inet_aton(UNIT) + socket.inet_aton(SERVER))) == 1

    def test_nothing_passes_before_the_first_revision(self, site: CgroupSite) -> None:
        site.outside("server", SERVER)
        site.workload("unit", UNIT)
        site.tell("unit", 256)
        with pytest.raises(PermissionError):
            site.run("unit", lambda: ask((SERVER, 80)))

    @pytest.mark.parametrize("identity", [1, 2, 99999])
    def test_a_row_that_contradicts_the_tables_lets_nothing_pass(self, site: CgroupSite, identity: int) -> None:
        site.outside("server", SERVER)
        site.workload("unit", UNIT)
        site.apply()
        site.tell("unit", identity)
        with pytest.raises(PermissionError):
            site.run("unit", lambda: ask((SERVER, 80)))

    def test_the_innermost_workload_counts(self, site: CgroupSite) -> None:
        server = site.pod("server", SERVER)
        site.workload("unit", UNIT)
        site.workload("unit/child", "10.2.0.2")
        site.apply(allow("server", "child", 80))
        with serve_greeting(server, SERVER, 80):
            assert site.run("unit/child", lambda: connect((SERVER, 80))) == "10.2.0.2"
            with pytest.raises(PermissionError):
                site.run("unit", lambda: connect((SERVER, 80)))


class TestForgery:
    @pytest.mark.parametrize("source", [HOST, "10.2.0.9", SERVER])
    def test_it_sends_from_its_own_address_only(self, site: CgroupSite, source: str) -> None:
        server = site.pod("server", SERVER)
        site.workload("unit", UNIT)
        site.workload("other", "10.2.0.9")
        site.apply()

        def speak() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
                line.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
                line.bind((source, 0))
                line.sendto(b"forged", (SERVER, 80))

        with Capture(server) as capture:
            with pytest.raises(OSError):
                site.run("unit", speak)
            assert not capture.having(b"forged")

    @pytest.mark.parametrize("mark", [0x200, 0x600, 0xA00, 0x600 | 5, 0xA01])
    def test_our_marks_on_its_sockets_let_nothing_pass(self, site: CgroupSite, mark: int) -> None:
        server = site.pod("server", SERVER)
        site.workload("unit", UNIT)
        site.apply(EVERYTHING)
        with serve_greeting(server, SERVER, 80), pytest.raises(OSError):
            site.run("unit", lambda: connect((SERVER, 80), mark=mark, timeout_s=0.5))
        assert (INVALID, EGRESS) in site.drops()

    @pytest.mark.parametrize(
        ("family", "kind", "protocol"),
        [
            (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
            (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
            (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP),
        ],
    )
    def test_it_gets_no_raw_sockets(self, site: CgroupSite, family: int, kind: int, protocol: int) -> None:
        site.workload("unit", UNIT)
        site.apply()

        def create() -> None:
            socket.socket(family, kind, protocol).close()

        with pytest.raises(PermissionError):
            site.run("unit", create)
        site.run("", create)

    def test_packet_sockets_do_not_speak_as_the_host(self, site: CgroupSite) -> None:
        server = site.pod("server", SERVER)
        site.workload("unit", UNIT)
        site.apply(allow("server", "host", 80, "UDP"))
        udp = struct.pack("!HHHH", 1000, 80, 8 + 6, 0) + b"forged"
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, *map(socket.inet_aton, (HOST, SERVER))
        )
        total = sum(struct.unpack("!10H", header))
        checked = header[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + header[12:]
        macs = bytes.fromhex((server.mac + server.host_mac).replace(":", ""))

        def speak() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as line:
                line.bind((server.veth, 0))
                line.send(macs + b"\x08\x00" + checked + udp)

        with Capture(server) as capture:
            with pytest.raises(OSError):
                site.run("unit", speak)
            assert site.drops()[UNKNOWN_SENDER, INGRESS] == 1
            assert not capture.having(b"forged")
            site.run("", speak)
            capture.wait(b"forged")
