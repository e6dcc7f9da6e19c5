# SPDX-License-Identifier: Apache-2.0
"""What hostile producers may do to the observer: nothing but lose their own records."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
from pathlib import Path

import pytest
from ext_authz.engine._engine import ffi
from flow_rings import Producer
from observed import GET, QUIET_S, Observed, observer, producer, shared, shared_producer
from service_run import wait_until

from ext_authz.state import State

__all__ = ["producer", "shared", "shared_producer"]


def _memfd(size: int, seals: int = 0) -> int:
    handle = os.memfd_create("evil", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(handle, size)
    if seals:
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, seals)
    return handle


def _send(observed: Observed, data: bytes, handles: list[int]) -> bytes:
    """What the observer answers: nothing, and then its end of the connection is closed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(QUIET_S)
        connection.connect(str(observed.socket))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(connection, [data], handles)
            return connection.recv(1)
        return b""


def test_what_is_no_ring_is_refused_and_harms_nobody(
    shared: Observed, shared_producer: Producer, tmp_path: Path
) -> None:
    good = Producer()
    hello, size = good.hello(), 4096 + (1 << 16)
    (tmp_path / "file").write_bytes(bytes(size))
    plain = os.open(tmp_path / "file", os.O_RDWR)
    unsealed, empty, odd = _memfd(size), _memfd(size, fcntl.F_SEAL_SHRINK), _memfd(size + 1, fcntl.F_SEAL_SHRINK)
    small, frozen = _memfd(4096, fcntl.F_SEAL_SHRINK), _memfd(size, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
    read, write = os.pipe()
    wrong = {
        "no descriptor": (hello, []),
        "two descriptors": (hello, [good.handle, good.handle]),
        "a file": (hello, [plain]),
        "not sealed": (hello, [unsealed]),
        "no ring within": (hello, [empty]),
        "an odd size": (hello, [odd]),
        "too small": (hello, [small]),
        "not writable": (hello, [frozen]),
        "a pipe": (hello, [read]),
        "a short hello": (hello[:-1], [good.handle]),
        "a long hello": (hello + b"x", [good.handle]),
        "other magic": (b"\0" * 8 + hello[8:], [good.handle]),
        "another version": (hello[:8] + b"\x63\0\0\0" + hello[12:], [good.handle]),
        "an unknown door": (hello[:16] + b"\x63\0\0\0" + hello[20:], [good.handle]),
    }
    shared_producer.put(**GET | {"path": b"/before-hostile"})
    shared.flows(1, path="^/before-hostile$")
    before = len(os.listdir(f"/proc/{shared.process.pid}/fd"))
    for what, (data, handles) in wrong.items():
        assert _send(shared, data, handles) == b"", what
    shared_producer.put(**GET | {"path": b"/after-hostile"})
    shared.flows(1, path="^/after-hostile$")
    wait_until(lambda: len(os.listdir(f"/proc/{shared.process.pid}/fd")) <= before + 2, "descriptors", QUIET_S)
    for handle in (plain, unsealed, empty, odd, small, frozen, read, write):
        os.close(handle)


def test_garbage_in_a_ring_is_skipped_and_counted(state: State, producer: Producer) -> None:
    with observer(state) as observed, producer.connect(observed.socket):
        producer.put(**GET, decision=b"1" * 16)
        observed.flows(1)
        observed.process.send_signal(signal.SIGSTOP)
        for number in range(100):
            producer.put(**GET, decision=number.to_bytes(16, "big"))
        os.pwrite(producer.handle, os.urandom(1 << 16), 4096)
        observed.process.send_signal(signal.SIGCONT)
        wait_until(lambda: any("damaged" in line or "malformed" in line for line in observed.said), "a word", QUIET_S)
        producer.put(**GET | {"path": b"/after-garbage"})
        observed.flows(1, path="^/after-garbage$")


def test_a_producer_that_lies_about_its_counts_stops_nothing(state: State, producer: Producer) -> None:
    with observer(state) as observed, producer.connect(observed.socket):
        for field in ("head", "written", "lost", "data_size", "magic", "tail"):
            os.pwrite(producer.handle, b"\xff" * 8, ffi.offsetof("struct idm_ring_head", field))
        other = Producer()
        with other.connect(observed.socket):
            other.put(**GET)
            observed.flows(1)


def test_a_flood_of_connections_leaves_room_for_the_next(state: State) -> None:
    with observer(state) as observed:
        flood = []
        for _ in range(300):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.connect(str(observed.socket))
            flood.append(connection)
        wait_until(lambda: any("too many" in line for line in observed.said), "a refusal", QUIET_S)
        for connection in flood:
            connection.close()
        producer = Producer()

        def heard() -> bool:
            with contextlib.suppress(OSError), producer.connect(observed.socket):
                producer.put(**GET)
                return bool(observed.now())
            return False

        wait_until(heard, "a flow", QUIET_S)


@pytest.mark.needs_root
def test_another_user_is_refused(state: State, producer: Producer) -> None:
    state.root.chmod(0o755)
    folder = os.open(state.root, os.O_RDONLY)
    with observer(state) as observed:
        observed.socket.chmod(0o666)  # even if the mode let them
        child = os.fork()
        if not child:
            with contextlib.suppress(OSError):
                os.fchdir(folder)
                os.setgroups([])
                ctypes.CDLL(None).setresgid(65534, 65534, 65534)
                ctypes.CDLL(None).setresuid(65534, 65534, 65534)
                with producer.connect(Path(observed.socket.name)) as connection:
                    connection.settimeout(20)
                    connection.recv(1)
            os._exit(0)
        os.close(folder)
        os.waitpid(child, 0)
        wait_until(lambda: any("user 65534" in line for line in observed.said), "a refusal", QUIET_S)
        producer.put(**GET)
        assert observed.now() == []
