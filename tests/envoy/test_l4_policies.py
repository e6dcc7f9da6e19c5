# SPDX-License-Identifier: Apache-2.0
"""
New policies and open connections: the module judges them again, network ext_authz only judged them at their start.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy_harness import CLIENT, OTHER, VERSIONS, Envoy, Node, envoy_of, policy, running, setup_for, wait_until
from envoy_tcp import Server, connect, ending, read_all, refused, server, tcp_door
from envoy_worker import worker

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door, Mode, Target

BOTH = policy("") + "---\n" + policy("", peer="other", name="q")
ONLY_CLIENT = policy("")
TURNS = 20


def _echo(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            connection.sendall(data)


def _said_back(connection: socket.socket, text: bytes) -> bool:
    connection.sendall(text)
    return connection.recv(100) == text


@contextlib.contextmanager
def _open(door: Door, node: Node, folder: Path, envoy: EnvoyBinary) -> Iterator[tuple[Envoy, Server]]:
    node.publish(BOTH)
    with server(_echo) as upstream, tcp_door(door, node, folder, envoy, upstream.address) as started:
        yield started, upstream


@pytest.mark.parametrize("version", VERSIONS)
def test_the_module_ends_open_connections_that_a_new_policy_denies(version: str, node: Node, tmp_path: Path) -> None:
    with (
        _open(Door.MODULE, node, tmp_path, envoy_of(version)) as (started, upstream),
        connect(started) as kept,
        connect(started, OTHER) as cut,
    ):
        assert _said_back(kept, b"one")
        assert _said_back(cut, b"one")
        node.publish(ONLY_CLIENT)
        assert ending(cut) == "reset"
        # The other half ends too: the server is not left with a client that is gone.
        wait_until(lambda: upstream.ended == 1, "the server's end")
        assert _said_back(kept, b"two")
        assert refused(started, OTHER)
        assert upstream.accepted == 2


def test_the_module_ends_connections_that_are_half_closed_or_never_spoke(
    node: Node, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(BOTH)

    def hold(connection: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            read_all(connection)
            held.wait(10)

    held = threading.Event()
    with (
        server(hold) as upstream,
        tcp_door(Door.MODULE, node, tmp_path, envoy, upstream.address) as started,
        connect(started, OTHER) as halfway,
        connect(started, OTHER) as silent,
    ):
        halfway.sendall(b"the last word")
        halfway.shutdown(socket.SHUT_WR)
        wait_until(lambda: upstream.accepted == 2, "both connections")
        node.publish(ONLY_CLIENT)
        assert ending(halfway) in ("reset", "closed")
        assert ending(silent) == "reset"
        held.set()


def test_the_module_cuts_a_transfer_under_way(node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    def flood(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"x" * 65536)

    node.publish(BOTH)
    with (
        server(flood) as upstream,
        tcp_door(Door.MODULE, node, tmp_path, envoy, upstream.address) as started,
        connect(started, OTHER) as client,
    ):
        assert client.recv(100)
        node.publish(ONLY_CLIENT)
        with pytest.raises(ConnectionError):
            read_all(client)
        wait_until(lambda: upstream.ended == 1, "the server's end")


def test_connections_that_stay_allowed_live_through_every_revision(
    node: Node, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    """Idle ones too: a policy that changes nothing for them costs them nothing."""
    with (
        _open(Door.MODULE, node, tmp_path, envoy) as (started, upstream),
        connect(started) as busy,
        connect(started) as idle,
    ):
        assert _said_back(idle, b"first")
        for turn in range(TURNS):
            node.wait_for(node.publish(policy("", name=f"p{turn}")))
            assert _said_back(busy, f"{turn}".encode())
        assert _said_back(idle, b"last")
        assert (upstream.accepted, upstream.ended) == (2, 0)
        assert started.stat("idmesh.denied") == 0


def test_no_connection_outlives_the_policy_that_allowed_it_under_churn(
    node: Node, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    """Connections that come while policies change are judged by one of them, and again by the next."""
    opened: list[socket.socket] = []
    ended = threading.Event()

    def knock(started: Envoy) -> None:
        while not ended.is_set():
            with contextlib.suppress(ConnectionError):
                opened.append(connect(started, OTHER))
            ended.wait(0.002)

    with _open(Door.MODULE, node, tmp_path, envoy) as (started, _):
        thread = threading.Thread(target=knock, args=(started,))
        thread.start()
        for turn in range(TURNS):
            node.wait_for(node.publish(ONLY_CLIENT if turn % 2 else BOTH))
        ended.set()
        thread.join()
        assert opened
        for connection in opened:
            with connection:
                assert ending(connection) in ("reset", "closed")
        wait_until(lambda: started.stat("tcp.idmesh.downstream_cx_total") >= 1, "the count")
        wait_until(lambda: started.stat("cluster.upstream.upstream_cx_active") == 0, "the end of all")


def test_ext_authz_judges_a_connection_at_its_start_only(node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    """Envoy's network filter asks once; the reference says so, and names the module where that is not enough."""
    with _open(Door.EXT_AUTHZ, node, tmp_path, envoy) as (started, upstream), connect(started, OTHER) as old:
        assert _said_back(old, b"one")
        node.wait_for(node.publish(ONLY_CLIENT))
        assert refused(started, OTHER)
        assert upstream.accepted == 1
        assert _said_back(old, b"two")
        with connect(started, CLIENT) as client:
            assert _said_back(client, b"still")


def test_without_an_answer_no_connection_passes_ext_authz(node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    """The service is away, or hangs: what is open stays, what comes is closed."""
    node.publish(BOTH)
    with server(_echo) as upstream, worker(node, tmp_path / "a.sock") as service:
        setup = setup_for(
            Door.EXT_AUTHZ,
            upstream.address,
            mode=Mode.TCP,
            authz=(Target(path=str(service.socket)),),
            authz_timeout_ms=300,
        )
        with running(setup, tmp_path, envoy) as started, connect(started) as old:
            assert _said_back(old, b"one")
            service.hang()
            assert refused(started, CLIENT)
            service.process.kill()
            service.process.wait()
            assert refused(started, CLIENT)
            assert _said_back(old, b"two")
            assert upstream.accepted == 1
