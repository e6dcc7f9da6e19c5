# SPDX-License-Identifier: Apache-2.0
"""Whom the kernel asks to answer a connection: Envoy for what is steered, nobody for what lost its row."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
from ext_authz.datapath._datapath import ffi, lib

from ext_authz.datapath.layout import c_layout, row
from ext_authz.play.network import Space
from tests.bpf.bare import ROOT, address

DROP, PASS = 0, 1  # the kernel's enum sk_action
FORWARDED, DROPPED, REDIRECTED = 1, 2, 5
TCP, UDP = 6, 17
ATTACHED, OTHER = True, False  # the interface it came in by
_COOKIE = 57  # SO_COOKIE
PAIRS = [("10.1.0.1", "10.1.0.2"), ("10.1.0.2", "10.1.0.1"), ("fd00:1::1", "fd00:1::2"), ("fd00:1::2", "fd00:1::1")]
pairs = pytest.mark.parametrize(("client", "server"), PAIRS)


@dataclass
class Answer:
    verdict: int
    cookie: int  # of the socket that was chosen, 0: none


class Desk:
    """The program over rows of a test's own."""

    def __init__(self, pins: Path) -> None:
        self.space, self._error = Space(), ffi.new("struct idm_datapath_error *")
        self._all = lib.idm_datapath_create(str(pins).encode())
        self.listeners: dict[int, socket.socket] = {}
        path = str(ROOT / "build/bpf/sk_lookup.bpf.o").encode()
        assert not lib.idm_datapath_load(self._all, path, ffi.NULL, 0, 0, self._error)

    def update(self, name: str, key: bytes, value: bytes) -> None:
        done = lib.idm_datapath_update(self._all, name.encode(), ffi.from_buffer(key), ffi.from_buffer(value))
        assert not done, f"{name}: {done}"

    def listen(self) -> None:
        """Sockets in the place of Envoy's."""
        for slot, (version, family) in enumerate(((4, socket.AF_INET), (6, socket.AF_INET6))):
            self.listeners[version] = self.space.socket(family)
            self.listeners[version].listen()
            self.update("listeners", struct.pack("=I", slot), struct.pack("=Q", self.listeners[version].fileno()))

    def cookie(self, version: int) -> int:
        data = self.listeners[version].getsockopt(socket.SOL_SOCKET, _COOKIE, 8)
        return int(struct.unpack("=Q", data)[0])

    def connection(self, client: str, server: str, verdict: int, protocol: int = TCP) -> None:
        """A row from client's port 40000 to server's 80."""
        ends = [(address(client), 40000), (address(server), 80)]
        low, high = sorted(ends)
        key = row("idm_connection_key").pack(
            low=[low[0]], high=[high[0]], low_port=low[1], high_port=high[1], protocol=protocol, leg=0
        )
        size, offsets = c_layout("idm_connection")
        value = bytearray(size)
        value[offsets["verdict"]] = verdict
        self.update("connections", key, bytes(value))

    def attach(self, wanted: bool) -> None:
        """Interface 0, which is where test runs come from, is a workload's or is not."""
        key = struct.pack("=I", 0)
        lib.idm_datapath_delete(self._all, b"attachments", ffi.from_buffer(key))
        if wanted:
            self.update("attachments", key, bytes(row("idm_attachment").size))

    def ask(self, client: str, server: str, attached: bool, protocol: int = TCP) -> Answer:
        self.attach(attached)
        version = ip_address(client).version
        words = [bytes(16), bytes(16)]
        if version == 6:
            words = [ip_address(client).packed, ip_address(server).packed]
        four = [ip_address(one).packed if version == 4 else bytes(4) for one in (client, server)]
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        head = struct.pack("=QII", 0, family, protocol)
        remote = four[0] + words[0] + struct.pack(">HH", 40000, 0)
        local = four[1] + words[1] + struct.pack("=II", 80, 0)
        context = ffi.new("char[72]", (head + remote + local).ljust(72, b"\0"))
        run = ffi.new("struct idm_datapath_run *", {"repeat": 1, "context_size": 72})
        program = lib.idm_datapath_program(self._all, b"choose_listener")
        done = lib.idm_datapath_run(program, ffi.NULL, 0, ffi.NULL, context, run, self.space.descriptor)
        assert not done, done
        return Answer(run.answer, struct.unpack_from("=Q", ffi.buffer(context), 0)[0])

    def close(self) -> None:
        for one in self.listeners.values():
            one.close()
        lib.idm_datapath_destroy(self._all)
        self.space.close()


@pytest.fixture
def desk(bpffs: Path) -> Iterator[Desk]:
    made = Desk(bpffs)
    yield made
    made.close()


@pairs
def test_envoy_answers_what_is_steered(client: str, server: str, desk: Desk) -> None:
    desk.listen()
    desk.connection(client, server, REDIRECTED)
    for attached in (ATTACHED, OTHER):
        assert desk.ask(client, server, attached) == Answer(PASS, desk.cookie(ip_address(client).version))


@pairs
def test_nobody_answers_for_envoy(client: str, server: str, desk: Desk) -> None:
    desk.connection(client, server, REDIRECTED)
    assert desk.ask(client, server, ATTACHED) == Answer(DROP, 0)


@pairs
def test_what_a_workload_sends_has_a_row_or_no_answer(client: str, server: str, desk: Desk) -> None:
    desk.listen()
    assert desk.ask(client, server, ATTACHED) == Answer(DROP, 0)
    assert desk.ask(client, server, OTHER) == Answer(PASS, 0)


@pytest.mark.parametrize("verdict", [FORWARDED, DROPPED])
def test_what_is_not_steered_goes_where_it_wants(verdict: int, desk: Desk) -> None:
    desk.listen()
    desk.connection("10.1.0.1", "10.1.0.2", verdict)
    assert desk.ask("10.1.0.1", "10.1.0.2", ATTACHED) == Answer(PASS, 0)


def test_datagrams_are_no_concern(desk: Desk) -> None:
    desk.listen()
    desk.connection("10.1.0.1", "10.1.0.2", REDIRECTED, UDP)
    assert desk.ask("10.1.0.1", "10.1.0.2", ATTACHED, UDP) == Answer(PASS, 0)
