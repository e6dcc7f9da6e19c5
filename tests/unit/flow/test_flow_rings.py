# SPDX-License-Identifier: Apache-2.0
"""Laws of a ring in the observer's hands: closed while others still hold it, it reads empty and touches no memory."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from pathlib import Path

import pytest
from flow_rings import Producer

from ext_authz.flow.hub import Hub
from ext_authz.flow.hubble import Formatter
from ext_authz.flow.intake import Intake
from ext_authz.flow.names import Names
from ext_authz.flow.reading import Reading


def test_a_closed_ring_reads_empty() -> None:
    producer = Producer()
    ring = producer.view()
    assert producer.put(path=b"/a")
    assert (ring.written, ring.lost, ring.used > 0) == (1, 0, True)
    ring.close()
    ring.close()
    assert (ring.take(), ring.written, ring.new_losses(), ring.used) == (b"", 0, 0, 0)


class Exhausted:
    """A listener at which somebody waits while there are no descriptors left."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.asked = 0

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> None:
        self.asked += 1
        raise OSError(errno.EMFILE, "too many open files")

    def close(self) -> None:
        self._listener.close()


def test_without_descriptors_nobody_is_asked_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        intake = Intake(tmp_path / "flows.sock")
        intake.listen()
        good = intake._listener
        bad = Exhausted(good)
        monkeypatch.setattr(intake, "_listener", bad)
        monkeypatch.setattr("ext_authz.flow.intake._PAUSE_S", 0.05)
        producer = Producer()
        with producer.connect(tmp_path / "flows.sock"):
            for _ in range(100):
                await asyncio.sleep(0)
            assert bad.asked == 1
            monkeypatch.setattr(intake, "_listener", good)
            while not intake.rings:
                await asyncio.sleep(0.001)
        intake.close()

    asyncio.run(asyncio.wait_for(scenario(), 10))


class HandingOver:
    """A sink that has the producer hand its ring over again while a batch of it is being written."""

    def __init__(self, producer: Producer, intake: Intake, path: Path) -> None:
        self._producer, self._intake, self._path = producer, intake, path
        self.connections: list[socket.socket] = []
        self.lines = b""

    def write(self, data: bytes) -> None:
        self.lines += data
        before = self._intake.rings
        if not self.connections:
            self.connections.append(self._producer.connect(self._path))
            until = time.monotonic() + 10
            while self._intake.rings[0] is before[0]:
                assert time.monotonic() < until
                time.sleep(0.001)

    def reopen(self) -> None: ...

    def close(self) -> None: ...


def test_a_ring_handed_over_anew_while_it_is_read_is_read_on(
    names: Names, formatter: Formatter, tmp_path: Path
) -> None:
    async def scenario() -> bytes:
        producer, intake = Producer(), Intake(tmp_path / "flows.sock")
        intake.listen()
        sink = HandingOver(producer, intake, tmp_path / "flows.sock")
        reading = Reading(intake, names, formatter, Hub(), sink)
        first = producer.connect(tmp_path / "flows.sock")
        while not intake.rings:
            await asyncio.sleep(0.001)
        assert producer.put(path=b"/first")
        assert await reading.turn() > 0
        assert producer.put(path=b"/second")
        assert await reading.turn() > 0
        intake.close()
        for connection in (first, *sink.connections):
            connection.close()
        return sink.lines

    lines = asyncio.run(scenario())
    assert lines.count(b"\n") == 2
    assert b"/first" in lines
    assert b"/second" in lines
