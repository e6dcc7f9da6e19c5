# SPDX-License-Identifier: Apache-2.0
"""Nobody but Envoy speaks for others: marks of ours are refused, and what carries them all the same is dropped."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from ext_authz.envoy_binary import find_envoy
from ext_authz.xds.setup import Steering
from tests.bpf.bare import run_in
from tests.bpf.net import Capture, connects, eventually, serve_greeting
from tests.bpf.packet_forms import ip4, tcp
from tests.bpf.steered import Steered, http_server, policy
from tests.bpf.test_steering_http import egress, ingress, url

TO_PROXY, FROM_PROXY, SOCKETS = 0x200, 0xA00, 0x600
OURS = [TO_PROXY, FROM_PROXY, SOCKETS, FROM_PROXY | 0x1005, 0x80000000 | TO_PROXY]
FOREIGN = [0x100, 0x4000, 0xC00, 0xF00]
_TRANSPARENT = 19


@pytest.fixture
def site(folder: Path, cgroup: Path) -> Iterator[Steered]:
    with Steered(folder, cgroup) as made:
        yield made


def set_mark(mark: int, size: int = 4) -> int:
    """The error of setting it, 0 if it is set. size: bytes of the option, of which the kernel reads four."""
    with socket.socket() as line:
        try:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark) + bytes(size - 4))
        except OSError as error:
            return error.errno or -1
        return 0


def test_only_envoys_cgroup_may_set_our_marks(site: Steered) -> None:
    other = site.guard / "other"
    other.mkdir()
    for mark in OURS:
        assert run_in(other, site.host, lambda mark=mark: set_mark(mark)) == errno.EPERM
        assert run_in(site.envoy_cgroup, site.host, lambda mark=mark: set_mark(mark)) == 0
    for mark in FOREIGN:
        assert run_in(other, site.host, lambda mark=mark: set_mark(mark)) == 0


def test_a_mark_longer_than_a_page_is_refused_whatever_it_is(site: Steered) -> None:
    """The kernel reads it once more after the program has: another thread could have changed it meanwhile."""
    other = site.guard / "other"
    other.mkdir()
    assert run_in(other, site.host, lambda: set_mark(FOREIGN[0], 4096)) == 0
    assert run_in(other, site.host, lambda: set_mark(FOREIGN[0], 4097)) == errno.EPERM


def send_marked(target: str, mark: int) -> bool:
    """Send a datagram whose mark comes with the message; false if it was dropped at once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        try:
            line.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))], 0, (target, 9))
        except PermissionError:
            return False
        return True


def test_a_mark_that_comes_with_a_message_drops_it(site: Steered) -> None:
    site.outside("outside", "203.0.113.7")
    other = site.guard / "other"
    other.mkdir()
    for mark in OURS:
        assert not run_in(other, site.host, lambda mark=mark: send_marked("203.0.113.7", mark))
    for mark in FOREIGN:
        assert run_in(other, site.host, lambda mark=mark: send_marked("203.0.113.7", mark))


def connect_as(source: str, target: str, mark: int) -> int:
    """The error of connecting in somebody's name, 0 if it is answered."""
    with socket.socket() as line:
        line.settimeout(1)
        line.setsockopt(socket.SOL_IP, _TRANSPARENT, 1)
        if mark:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
        line.bind((source, 0))
        try:
            line.connect((target, 8080))
        except TimeoutError:
            return errno.ETIMEDOUT
        except OSError as error:
            return error.errno or -1
        return 0


@pytest.mark.needs_envoy
def test_envoys_cgroup_speaks_only_for_the_client_of_its_token(site: Steered) -> None:
    client, server = site.add("client", "10.1.0.1"), site.add("server", "10.1.0.2")
    site.add("other", "10.1.0.3")
    site.apply(ingress("/a"))
    site.start(find_envoy())
    with http_server(server, 8080):
        assert site.get(client, url("10.1.0.2", "/a")).status == 200
        token = next(iter(site.kernel.rows("grants", 4, 32)))
        number = struct.unpack("=I", token)[0]
        mark = FROM_PROXY | number & 0xFF | (number & 0xFFFF00) << 4

        def attempt(source: str, mark: int) -> int:
            return int(run_in(site.envoy_cgroup, site.host, lambda: connect_as(source, "10.1.0.2", mark)))

        assert attempt("10.1.0.1", mark) == 0
        assert attempt("10.1.0.3", mark) != 0  # another's address
        assert attempt("10.1.0.1", mark ^ 1) != 0  # a token that nobody has


@pytest.mark.needs_envoy
@pytest.mark.parametrize("target", ["10.1.0.2", "203.0.113.7"], ids=["local", "elsewhere"])
def test_envoys_connection_is_judged_by_the_revision_in_force(site: Steered, target: str) -> None:
    """An Envoy that has not read it yet, or cannot, connects for a client that may not any more."""
    client, server = site.add("client", "10.1.0.1"), site.add("server", "10.1.0.2")
    outside = site.outside("outside", "203.0.113.7")
    peer = server if target == "10.1.0.2" else outside
    everyone = "toEntities: [all]"
    site.apply(egress("/a", everyone))
    site.start(find_envoy())
    with http_server(peer, 8080), Capture(peer) as seen:
        assert site.get(client, url(target, "/a")).status == 200
        ((token, _),) = site.kernel.rows("grants", 4, 32).items()
        number = struct.unpack("=I", token)[0]
        mark = FROM_PROXY | number & 0xFF | (number & 0xFFFF00) << 4

        def attempt() -> int:
            return int(run_in(site.envoy_cgroup, site.host, lambda: connect_as("10.1.0.1", target, mark)))

        assert attempt() == 0
        site.apply(egress("/a", everyone).replace("8080", "8081"))
        before = len(seen.having(ip_address("10.1.0.1").packed + ip_address(target).packed))
        assert attempt() != 0
        assert len(seen.having(ip_address("10.1.0.1").packed + ip_address(target).packed)) == before


def test_envoy_in_a_clients_name_is_never_taken_for_the_host(site: Steered) -> None:
    """Without its mark nothing tells whose packet it is, and the host may do what the client may not."""
    server = site.add("server", "10.1.0.2")
    site.add("client", "10.1.0.1")
    site.host.ip(["address add 10.9.0.1/32 dev lo"])
    site.kernel.locals(("10.9.0.1",))
    site.apply(policy("ingress:\n- fromEntities: [host]"))
    forged = ip_address("10.1.0.1").packed + ip_address("10.1.0.2").packed
    with http_server(server, 8080), Capture(server) as seen:
        assert run_in(site.envoy_cgroup, site.host, lambda: connect_as("10.9.0.1", "10.1.0.2", 0)) == 0
        assert run_in(site.envoy_cgroup, site.host, lambda: connect_as("10.1.0.1", "10.1.0.2", 0)) != 0
        assert seen.having(forged) == []


def send_raw(source: str, target: str) -> bool:
    """Send a first segment in somebody's name from a connected socket that writes its own headers; false if refused."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as line:
        line.setsockopt(socket.SOL_IP, socket.IP_HDRINCL, 1)
        line.connect((target, 0))
        try:
            line.send(ip4(source, target, socket.IPPROTO_TCP, tcp(40000, 8080)))
        except PermissionError:
            return False
        return True


def test_a_raw_socket_is_no_established_connection(site: Steered) -> None:
    """Connected, it has the protocol and the state of one, and sends what it likes."""
    server = site.add("server", "10.1.0.2")
    site.add("client", "10.1.0.1")
    site.apply(policy("ingress:\n- fromEntities: [host]"))
    with Capture(server) as seen:
        assert not run_in(site.envoy_cgroup, site.host, lambda: send_raw("10.1.0.1", "10.1.0.2"))
        assert seen.having(ip_address("10.1.0.1").packed + ip_address("10.1.0.2").packed) == []


def test_a_mark_that_slips_past_the_guard_opens_nothing(site: Steered) -> None:
    """From a cgroup that nobody guards, as where the guard hangs too low."""
    server = site.add("server", "10.1.0.2")
    site.add("client", "10.1.0.1")
    site.apply(ingress("/a"))
    with serve_greeting(server, "10.1.0.2", 8080) as listener, site.host.inside():
        for mark in (FROM_PROXY, FROM_PROXY | 5, TO_PROXY):
            assert connect_as("10.1.0.1", "10.1.0.2", mark) != 0
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.needs_envoy
def test_a_steered_connection_without_a_row_is_closed(site: Steered) -> None:
    """Forgotten between kernel and Envoy: nobody else answers, and Envoy takes no address for an identity."""
    client, server = site.add("client", "10.1.0.1"), site.add("server", "10.1.0.2")
    site.apply(ingress("/a"))
    site.start(find_envoy())
    with http_server(server, 8080) as seen, client.socket(socket.AF_INET) as line:
        line.settimeout(5)
        assert site.envoy is not None
        pid = site.envoy.pid
        # Before it can accept: the kernel alone answers the client then.
        os.kill(pid, signal.SIGSTOP)
        try:
            eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            line.connect(("10.1.0.2", 8080))
            line.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            for key in site.kernel.rows("connections", 40, 72):
                site.kernel.delete("connections", key)
        finally:
            os.kill(pid, signal.SIGCONT)
        with contextlib.suppress(ConnectionError):
            assert line.recv(10) == b""
        assert seen.seen == []


@pytest.mark.needs_envoy
def test_numbers_of_another_identity_domain_name_nobody(site: Steered) -> None:
    client, server = site.add("client", "10.1.0.1"), site.add("server", "10.1.0.2")
    site.apply(ingress("/a"))
    site.start(find_envoy())
    state = bytearray(site.kernel.read("state", struct.pack("=I", 0), 64))
    struct.pack_into("=Q", state, 8, struct.unpack_from("=Q", state, 8)[0] + 1)
    with http_server(server, 8080) as seen:
        assert site.get(client, url("10.1.0.2", "/a")).status == 200
        site.kernel.update("state", struct.pack("=I", 0), bytes(state))
        assert site.get(client, url("10.1.0.2", "/a")).status == 403
    assert len(seen.seen) == 1


def test_packets_for_envoy_reach_no_other_listener_of_the_host(site: Steered) -> None:
    """A program that listens on every address must not be mistaken for Envoy."""
    client, server = site.add("client", "10.1.0.1"), site.add("server", "10.1.0.2")
    site.apply(ingress("/a"))
    with site.host.socket(socket.AF_INET) as wide:
        wide.setsockopt(socket.SOL_IP, _TRANSPARENT, 1)
        wide.bind(("0.0.0.0", 8080))
        wide.listen()
        assert not connects(client, (server.address(), 8080), 0.5)


@pytest.mark.needs_envoy
def test_envoy_follows_when_the_datapath_begins_anew(site: Steered) -> None:
    """Other maps under the same names: what was opened before knows no connection any more."""
    client, server = site.add("client", "10.1.0.1"), site.add("server", "10.1.0.2")
    site.apply(ingress("/a"))
    site.start(find_envoy(), steering=Steering(site.other_pins()))
    with http_server(server, 8080):
        assert site.get(client, url("10.1.0.2", "/a")).status == 0
        site.repoint_pins()
        assert site.get(client, url("10.1.0.2", "/a")).status == 200
