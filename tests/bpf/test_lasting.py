# SPDX-License-Identifier: Apache-2.0
"""Connections that stay: downloads over which the policy changes, hours of silence, and the host at either end."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ext_authz.envoy_binary import find_envoy
from ext_authz.play.network import End, Space
from tests.bpf.net import eventually
from tests.bpf.steered import Steered, policy

PAIRS = [("10.1.0.1", "10.1.0.2"), ("fd00:1::1", "fd00:1::2")]
both_versions = pytest.mark.parametrize("addresses", PAIRS, ids=["ipv4", "ipv6"])
PORT = 8080
HOURS = 3600  # seconds
L4 = "ingress:\n- fromEndpoints: [{matchLabels: {app: %s}}]\n  toPorts: [{ports: [{port: '8080', protocol: TCP}]}]"
L7 = (
    "ingress:\n- fromEndpoints: [{matchLabels: {app: %s}}]\n"
    "  toPorts: [{ports: [{port: '8080', protocol: TCP}], rules: {http: [{path: /.*}]}}]"
)
WAYS = pytest.mark.parametrize(
    "rules", [L4, pytest.param(L7, marks=pytest.mark.needs_envoy)], ids=["direct", "steered"]
)
POLICY_DENIED = 133
_KEY, _ROW, _SEEN_AT = 40, 72, 4


@pytest.fixture
def site(folder: Path, cgroup: Path) -> Iterator[Steered]:
    with Steered(folder, cgroup) as made:
        yield made


class Download:
    """An HTTP answer that never ends, and who reads it."""

    def __init__(self, line: socket.socket, target: str) -> None:
        self._line = line
        self.bytes, self.ended_at = 0, 0.0
        line.settimeout(60)
        line.connect((target, PORT))
        line.sendall(b"GET /a HTTP/1.1\r\nhost: server\r\n\r\n")
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while got := len(self._line.recv(65536)):
                self.bytes += got
        self.ended_at = time.monotonic()

    def say(self) -> None:
        """A byte, for the server to acknowledge."""
        self._line.sendall(b" ")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._line.close()


@contextlib.contextmanager
def listening(end: End | Space, address: str, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """A thread for everybody who connects, all ended afterwards."""

    def answer(line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            serve(line)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                started = threading.Thread(target=answer, args=(listener.accept()[0],))
                started.start()
                threads.append(started)

    threads = list[threading.Thread]()
    listener = line_of(end, address)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, PORT))
    listener.listen(16)
    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        for thread in threads:
            thread.join()
        listener.close()


@contextlib.contextmanager
def endless(end: End, address: str) -> Iterator[None]:
    """A server of 4 KiB chunks, 500 a second, to whoever asks."""
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"

    def serve(line: socket.socket) -> None:
        line.settimeout(10)
        line.recv(65536)
        line.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not done.wait(0.002):
            line.sendall(chunk)

    done = threading.Event()
    with listening(end, address, serve):
        try:
            yield
        finally:
            done.set()


def line_of(end: End | Space, address: str) -> socket.socket:
    return end.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)


def grows(download: Download) -> Callable[[], bool]:
    before = download.bytes
    return lambda: download.bytes > before + 100_000


def idle(site: Steered, seconds: int) -> int:
    """As if no packet had been seen for so long, on every leg. Rows that were changed."""
    now = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    rows = site.kernel.rows("connections", _KEY, _ROW)
    for key, row in rows.items():
        seen = struct.pack("=I", max(0, now - seconds))
        site.kernel.update("connections", key, row[:_SEEN_AT] + seen + row[_SEEN_AT + 4 :])
    return len(rows)


def denials(site: Steered) -> int:
    """Packets that policy denied, in either direction."""
    size = struct.calcsize("=2Q")  # struct idm_counter, one a processor
    rows = site.kernel.rows("counters", 4, size * (os.cpu_count() or 1))
    values = [rows[struct.pack("=I", POLICY_DENIED * 2 + direction)] for direction in (0, 1)]
    return sum(packets for value in values for packets, _ in struct.iter_unpack("=2Q", value))


@contextlib.contextmanager
def downloading(site: Steered, addresses: tuple[str, str], rules: str) -> Iterator[Download]:
    """By a policy that allows it; with rules for requests, through Envoy."""
    client, server = site.add("client", addresses[0]), site.add("server", addresses[1])
    site.apply(policy(rules % "client"))
    if rules is L7:
        site.start(find_envoy())
    with (
        endless(server, addresses[1]),
        contextlib.closing(Download(line_of(client, addresses[0]), addresses[1])) as made,
    ):
        eventually(grows(made))
        yield made


@both_versions
@WAYS
def test_a_denial_ends_a_download_that_runs(addresses: tuple[str, str], rules: str, site: Steered) -> None:
    with downloading(site, addresses, rules) as download:
        site.apply(policy(rules % "client") + policy("egress: [{}]", "unrelated", "nobody"))
        eventually(grows(download), what="a policy of somebody else stopped it")
        before = denials(site)
        site.apply(policy(rules % "nobody"))
        denied_at = time.monotonic()
        if rules is L7:
            eventually(lambda: download.ended_at, what="Envoy keeps what policy denies")
            print(f"closed {(download.ended_at - denied_at) * 1000:.1f} ms after the denial was published")
        eventually(lambda: denials(site) > before, what="nothing is denied")
        # What the client's socket held already it may read.
        eventually(lambda: _rests(download), what="bytes still arrive")


def _rests(download: Download) -> bool:
    before = download.bytes
    time.sleep(0.1)
    return download.bytes == before


@both_versions
@WAYS
def test_hours_of_silence_end_no_connection(addresses: tuple[str, str], rules: str, site: Steered) -> None:
    with downloading(site, addresses, rules) as download:
        for _ in range(3):
            assert idle(site, 5 * HOURS) >= (2 if rules is L7 else 1)
            eventually(grows(download), what="an idle connection was forgotten too soon")


@both_versions
def test_a_forgotten_connection_is_asked_of_policy(addresses: tuple[str, str], site: Steered) -> None:
    """Direct ones go on where the client may open them; nothing counts as established."""
    client, server = site.add("client", addresses[0]), site.add("server", addresses[1])
    site.apply(policy(L4 % "client") + policy("egress:\n- toEndpoints: [{matchLabels: {app: nobody}}]", "out"))
    with endless(server, addresses[1]):
        download = Download(line_of(client, addresses[0]), addresses[1])
        try:
            eventually(grows(download))
            idle(site, 7 * HOURS)
            # The server may open nothing: it is silent until a packet of the client's was judged.
            eventually(lambda: _rests(download), what="the server goes on by itself")
            download.say()
            eventually(grows(download), what="the client cannot open it again")
        finally:
            download.close()


@both_versions
def test_the_host_reaches_a_workload_and_is_reached_where_policy_says(
    addresses: tuple[str, str], site: Steered
) -> None:
    server = site.add("server", addresses[1])
    own = "fd00:9::1" if ":" in addresses[1] else "10.9.0.1"
    site.host.ip([f"address add {own} dev lo{' nodad' if ':' in own else ''}"])
    site.kernel.locals((own,))

    def greet(line: socket.socket) -> None:
        line.sendall(b"hello")

    def reaches(source: End | Space, target: str, timeout_s: float = 10) -> bool:
        with line_of(source, target) as line:
            line.settimeout(timeout_s)
            try:
                line.connect((target, PORT))
            except OSError:
                return False
            return line.recv(5) == b"hello"

    with listening(server, addresses[1], greet), listening(site.host, own, greet):
        site.apply(policy("ingress: [{fromEntities: [host]}]") + policy("egress: [{toEntities: [host]}]", "out"))
        assert reaches(site.host, addresses[1])
        assert reaches(server, own)
        site.apply(policy("egress: [{toEntities: [world]}]", "out"))
        assert not reaches(server, own, 0.5)
        assert reaches(site.host, addresses[1])
