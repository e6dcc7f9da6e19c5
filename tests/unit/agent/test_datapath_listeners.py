# SPDX-License-Identifier: Apache-2.0
"""Envoy's listeners are found in its processes: those, and no other socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ext_authz.agent.datapath_listeners import Listeners


class Maps:
    """Keeps a copy of each socket that is put in."""

    def __init__(self) -> None:
        self.held: dict[int, socket.socket] = {}

    def lookup(self, name: str, key: bytes) -> bytes:
        assert name == "listeners"
        if int.from_bytes(key, "little") not in self.held:
            raise KeyError(key)
        return bytes(8)

    def update(self, name: str, key: bytes, value: bytes) -> None:
        assert name == "listeners"
        self.held[int.from_bytes(key, "little")] = socket.socket(fileno=os.dup(int.from_bytes(value, "little")))


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    """As if this very process ran in it."""
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    return tmp_path


def test_a_listener_older_than_the_maps_is_put_in_once(cgroup: Path) -> None:
    maps = Maps()
    with socket.create_server(("127.0.0.1", 0)) as envoy, socket.create_server(("127.0.0.1", 0)):
        port = envoy.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            listeners = Listeners(maps, cgroup, port)
            assert listeners.look() == 1
            assert maps.held[0].getsockname() == ("127.0.0.1", port)
            assert maps.held[0].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert listeners.look(at_once=True) == 0
            maps.held.pop(0).close()
            assert listeners.look() == 0  # IPv6 has none here: it is not searched for without a pause
            assert listeners.look(at_once=True) == 1
    maps.held.pop(0).close()


def test_without_an_envoy_there_is_nothing_to_find(cgroup: Path, tmp_path: Path) -> None:
    maps = Maps()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert Listeners(maps, cgroup, 0).look() == 0
        assert Listeners(maps, None, port).look() == 0
        assert Listeners(maps, tmp_path / "gone", port).look() == 0
        assert Listeners(maps, cgroup, port + 1 if port < 65535 else 1).look() == 0
    assert maps.held == {}
