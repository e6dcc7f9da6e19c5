# SPDX-License-Identifier: Apache-2.0
"""A connection to a process of this host that has to go through Envoy from now on does not reach it on its old way."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ext_authz.envoy_binary import find_envoy
from ext_authz.play.network import Space
from tests.bpf.bare import run_in
from tests.bpf.cgroup_site import HOST, allow
from tests.bpf.net import eventually
from tests.bpf.steered import Steered
from tests.bpf.test_cgroup_steering import UNIT, Site
from tests.conftest import missing

pytestmark = pytest.mark.needs_envoy

PAIRS = [("10.1.0.1", "10.9.0.1"), ("fd00:1::1", "fd00:9::1")]
PORT = 8080
_KEY, _ROW = 40, 72
_ESTABLISHED = 1
_ATTEMPTS_AT = 156  # tcpi_data_segs_out


@pytest.fixture
def site(folder: Path, cgroup: Path) -> Iterator[Steered]:
    if shutil.which("nft") is None:
        missing("nft is missing")
    with Steered(folder, cgroup) as made:
        yield made


def of_version(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextlib.contextmanager
def listening(space: Space, address: str) -> Iterator[socket.socket]:
    with space.socket(of_version(address)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, PORT))
        listener.listen()
        yield listener


def attempts(line: socket.socket) -> int:
    """How often it sent data; 2^32 once it was ended."""
    told = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ATTEMPTS_AT + 4)
    return struct.unpack_from("=I", told, _ATTEMPTS_AT)[0] if told[0] == _ESTABLISHED else 1 << 32


def nothing_more(client: socket.socket, server: socket.socket) -> None:
    """What the client sends now does not arrive, however often it is sent again."""
    before = attempts(client)
    client.sendall(b"two")
    server.setblocking(False)

    def settled() -> bool:
        with contextlib.suppress(BlockingIOError):
            assert server.recv(16) == b"", "it arrived past Envoy"
        return attempts(client) >= before + 3

    eventually(settled)


def nobody_knows(site: Steered) -> None:
    for key in site.kernel.rows("connections", _KEY, _ROW):
        site.kernel.delete("connections", key)


def its_own(_: Steered) -> None:
    pass


def held_to_requests(
    site: Steered, name: str, client: socket.socket, listener: socket.socket, meanwhile: Callable[[Steered], None]
) -> None:
    """A connection that was allowed says nothing more once a rule for requests selects it."""
    with listener.accept()[0] as server:
        client.sendall(b"one")
        assert server.recv(16) == b"one"
        site.wait_for(site.apply(allow(name, "host", PORT, egress=True, http="/a")))
        meanwhile(site)
        nothing_more(client, server)
        site.apply(allow(name, "host", PORT, egress=True, http="/b"))
        nothing_more(client, server)


@pytest.mark.parametrize("meanwhile", [its_own, nobody_knows], ids=["row", "no row"])
@pytest.mark.parametrize("addresses", PAIRS, ids=["ipv4", "ipv6"])
def test_a_pods_direct_connection_to_the_host_ends_where_requests_are_to_be_judged(
    site: Steered, addresses: tuple[str, str], meanwhile: Callable[[Steered], None]
) -> None:
    own, target = addresses
    end = site.add("client", own)
    site.host.ip([f"address add {target} dev lo{' nodad' if ':' in target else ''}"])
    site.kernel.locals((target,))
    site.apply(allow("client", "host", PORT, egress=True))
    site.start(find_envoy())
    # Whoever means harm does not take the reset.
    end.space.run(["nft", "add table inet own"])
    end.space.run(["nft", "add chain inet own in { type filter hook input priority 0; }"])
    end.space.run(["nft", "add rule inet own in tcp flags & rst == rst drop"])
    with listening(site.host, target) as listener, end.socket(of_version(own)) as client:
        client.settimeout(5)
        client.connect((target, PORT))
        held_to_requests(site, "client", client, listener, meanwhile)


def socket_of(cgroup: Path, space: Space) -> socket.socket:
    """A socket that a process of the cgroup made."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def make() -> None:
        with socket.socket() as line:
            socket.send_fds(its, [b"."], [line.fileno()])

    with mine, its:
        run_in(cgroup, space, make)
        return socket.socket(fileno=socket.recv_fds(mine, 1, 1)[1][0])


@pytest.mark.parametrize("meanwhile", [its_own, nobody_knows], ids=["row", "no row"])
def test_so_does_that_of_a_workload_without_a_namespace(
    folder: Path, cgroup: Path, meanwhile: Callable[[Steered], None]
) -> None:
    site = Site(folder, cgroup, (UNIT,))
    with site:
        site.apply(allow("unit", "host", PORT, egress=True))
        site.start(find_envoy())
        with listening(site.host, HOST) as listener, socket_of(site.unit, site.host) as client:
            run_in(site.unit, site.host, lambda: client.connect((HOST, PORT)))
            held_to_requests(site, "unit", client, listener, meanwhile)
