# SPDX-License-Identifier: Apache-2.0
"""What both L4 doors do to the bytes of an allowed connection: nothing, whoever speaks first and ends first."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from envoy_harness import CLIENT, OTHER, VERSIONS, Node, envoy_of, policy, wait_until
from envoy_tcp import Server, connect, ending, read_all, refused, reset, server, tcp_door

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door

BANNER = b"220 hello\r\n"
MANY = 2000 if os.environ.get("IDMESH_SOAK") else 200
BULK = os.urandom(1 << 16) * (64 if os.environ.get("IDMESH_SOAK") else 16)

both_doors = pytest.mark.parametrize("door", [Door.MODULE, Door.EXT_AUTHZ])


@pytest.fixture(autouse=True)
def _in_force(node: Node) -> None:
    node.publish(policy(""))


# ---- who speaks first ----


def _banner(connection: socket.socket) -> None:
    connection.sendall(BANNER)
    connection.sendall(connection.recv(100))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_that_speaks_first_is_heard_at_once_through_the_module(
    version: str, node: Node, tmp_path: Path
) -> None:
    with (
        server(_banner) as upstream,
        tcp_door(Door.MODULE, node, tmp_path, envoy_of(version), upstream.address) as started,
    ):
        with connect(started) as silent:
            assert silent.recv(100) == BANNER
            silent.sendall(b"EHLO")
            assert silent.recv(100) == b"EHLO"
        assert refused(started, OTHER, b"")
        assert upstream.accepted == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_that_speaks_first_waits_for_the_client_through_ext_authz(
    version: str, node: Node, tmp_path: Path
) -> None:
    """Envoy's network filter asks at the first byte, so until then nobody is connected: neither allowed nor denied."""
    with (
        server(_banner) as upstream,
        tcp_door(Door.EXT_AUTHZ, node, tmp_path, envoy_of(version), upstream.address) as started,
    ):
        with connect(started) as silent, connect(started, OTHER) as denied:
            silent.settimeout(0.3)
            with pytest.raises(TimeoutError):
                silent.recv(100)
            assert upstream.accepted == 0
            denied.sendall(b"EHLO")
            assert ending(denied) in ("closed", "reset")
            assert upstream.accepted == 0
            silent.settimeout(10)
            silent.sendall(b"EHLO")
            heard = b""
            while len(heard) < len(BANNER) + 4:
                heard += silent.recv(100)
            assert heard == BANNER + b"EHLO"
        assert upstream.accepted == 1


# ---- who ends first ----


@both_doors
def test_a_client_that_ends_its_words_hears_the_answer(
    door: Door, node: Node, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    def digest(connection: socket.socket) -> None:
        connection.sendall(hashlib.sha256(read_all(connection)).digest() + BULK)

    with server(digest) as upstream, tcp_door(door, node, tmp_path, envoy, upstream.address) as started:
        with connect(started) as client:
            client.sendall(BULK)
            client.shutdown(socket.SHUT_WR)
            answer = read_all(client)
        assert answer == hashlib.sha256(BULK).digest() + BULK
        wait_until(lambda: upstream.ended == 1, "the server's end")


def _date(connection: socket.socket) -> None:
    connection.sendall(b"today")
    assert read_all(connection) == b""


def test_a_client_that_ends_without_a_word_hears_the_server_through_the_module(
    node: Node, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    with server(_date) as upstream, tcp_door(Door.MODULE, node, tmp_path, envoy, upstream.address) as started:
        with connect(started) as client:
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"today"
        assert refused(started, OTHER, b"")
        wait_until(lambda: upstream.ended == 1, "the server's end")
        assert upstream.accepted == 1


def test_a_client_that_ends_without_a_word_reaches_nobody_through_ext_authz(
    node: Node, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    """Envoy's proxy waits for a first byte that cannot come any more."""
    with server(_date) as upstream, tcp_door(Door.EXT_AUTHZ, node, tmp_path, envoy, upstream.address) as started:
        with connect(started) as client:
            client.shutdown(socket.SHUT_WR)
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(100)
        assert upstream.accepted == 0


@both_doors
def test_a_server_that_ends_its_words_hears_the_client_out(
    door: Door, node: Node, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    heard: list[bytes] = []

    def greet_and_listen(connection: socket.socket) -> None:
        assert connection.recv(2) == b"hi"
        connection.sendall(BULK)
        connection.shutdown(socket.SHUT_WR)
        heard.append(read_all(connection))

    with server(greet_and_listen) as upstream, tcp_door(door, node, tmp_path, envoy, upstream.address) as started:
        with connect(started) as client:
            client.sendall(b"hi")
            assert read_all(client) == BULK
            client.sendall(BULK)
        wait_until(lambda: upstream.ended == 1, "the server's end")
    assert heard == [BULK]


@both_doors
def test_a_server_that_closes_ends_the_connection(door: Door, node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    def bye(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"bye")

    with (
        server(bye) as upstream,
        tcp_door(door, node, tmp_path, envoy, upstream.address) as started,
        connect(started) as client,
    ):
        client.sendall(b"x")
        assert read_all(client) == b"bye"


@both_doors
def test_both_ways_at_once_keep_every_byte(door: Door, node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    def echo(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data)

    def send(client: socket.socket) -> None:
        client.sendall(BULK)
        client.shutdown(socket.SHUT_WR)

    with (
        server(echo) as upstream,
        tcp_door(door, node, tmp_path, envoy, upstream.address) as started,
        connect(started) as client,
    ):
        sender = threading.Thread(target=send, args=(client,))
        sender.start()
        assert read_all(client) == BULK
        sender.join()


# ---- resets ----


@both_doors
def test_a_client_that_resets_ends_the_servers_connection(
    door: Door, node: Node, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    ends: list[str] = []

    def wait(connection: socket.socket) -> None:
        connection.sendall(connection.recv(5))
        ends.append(ending(connection))

    with server(wait) as upstream, tcp_door(door, node, tmp_path, envoy, upstream.address) as started:
        client = connect(started)
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        reset(client)
        wait_until(lambda: upstream.ended == 1, "the server's end")
    assert ends[0] in ("closed", "reset")


@both_doors
def test_a_server_that_resets_ends_the_clients_connection(
    door: Door, node: Node, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    def drop(connection: socket.socket) -> None:
        connection.recv(5)
        reset(connection)

    with (
        server(drop) as upstream,
        tcp_door(door, node, tmp_path, envoy, upstream.address) as started,
        connect(started) as client,
    ):
        client.sendall(b"hello")
        assert ending(client) in ("closed", "reset")


# ---- many ----


@both_doors
def test_many_short_connections_are_each_judged_once(
    door: Door, node: Node, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    def echo(connection: socket.socket) -> None:
        connection.sendall(connection.recv(100))

    def one(number: int) -> bool:
        if number % 2:
            return refused(started, OTHER)
        with connect(started, CLIENT) as client:
            said = f"{number}".encode()
            client.sendall(said)
            return read_all(client) == said

    with server(echo) as upstream, tcp_door(door, node, tmp_path, envoy, upstream.address) as started:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(one, range(MANY)))
        assert upstream.accepted == MANY // 2
        _counted(door, started.stat, upstream)


def _counted(door: Door, stat, upstream: Server) -> None:  # type: ignore[no-untyped-def]
    allowed, denied = ("idmesh.allowed", "idmesh.denied") if door == Door.MODULE else ("ok", "denied")
    prefix = "" if door == Door.MODULE else "ext_authz.idmesh."
    assert stat(f"{prefix}{allowed}") == upstream.accepted
    assert stat(f"{prefix}{denied}") == MANY - upstream.accepted
