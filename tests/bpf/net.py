# SPDX-License-Identifier: Apache-2.0
"""
What tests of the data path stand on: a node with workloads, a bpffs and cgroups of their own, and an outside capture.

    def test_something(net: Network, bpffs: Path) -> None:
        client, server = net.add("client", "10.1.0.1", "fd00:1::1"), net.add("server", "10.1.0.2", "fd00:1::2")
        with net.node.inside():  # ifindexes, tcx links and test_run are the calling thread's namespace's
            ...
        server.space.socket(socket.AF_INET)

The root namespace is never touched: the host of a test is `net.node`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ext_authz.play.network import GATEWAY4, GATEWAY6, INTERFACE, End, Network, Space, network

__all__ = [
    "GATEWAY4",
    "GATEWAY6",
    "INTERFACE",
    "Capture",
    "End",
    "Network",
    "Space",
    "connects",
    "eventually",
    "mounted_bpffs",
    "network",
    "own_cgroup",
    "read_pings",
    "serve_greeting",
    "unmount",
]

ETH_ALL = 3
_PACKET_OUTGOING = 4


class Capture:
    """
    Every frame that arrives in a namespace, as somebody outside of all programs sees it.

    Frames that the namespace sends itself do not count.
    """

    def __init__(self, end: End) -> None:
        self._socket = end.space.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind((INTERFACE, ETH_ALL))
        self._socket.setblocking(False)
        self.frames: list[bytes] = []

    def read(self) -> list[bytes]:
        """All frames that have arrived so far."""
        while True:
            try:
                frame, where = self._socket.recvfrom(65536)
            except BlockingIOError:
                return self.frames
            if where[2] != _PACKET_OUTGOING:
                self.frames.append(frame)

    def having(self, part: bytes) -> list[bytes]:
        """The frames with these bytes in them."""
        return [frame for frame in self.read() if part in frame]

    def wait(self, part: bytes, timeout_s: float = 5.0) -> bytes:
        """The first frame with these bytes."""
        deadline = time.monotonic() + timeout_s
        while not (found := self.having(part)):
            if not select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"no frame with {part!r}")
        return found[0]

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def eventually(holds: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> None:
    """Wait until a condition holds; fail if it never does."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(what or f"never came true: {holds}")
        time.sleep(0.005)


def connects(client: End, target: tuple[str, int], timeout_s: float = 1.0, source: str = "") -> bool:
    """Whether a TCP connection comes about."""
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with client.socket(family) as line:
        line.settimeout(timeout_s)
        if source:
            line.bind((source, 0))
        try:
            line.connect(target)
        except OSError:
            return False
        return True


@contextlib.contextmanager
def serve_greeting(end: End, address: str, port: int) -> Iterator[socket.socket]:
    """A TCP listener; what connects waits in its backlog."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with end.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(128)
        listener.settimeout(10.0)
        yield listener


def read_pings(line: socket.socket) -> list[tuple[bytes, str]]:
    """What a datagram socket has received so far, with its senders."""
    found = []
    while select.select([line], [], [], 0)[0]:
        data, where = line.recvfrom(65536)
        found.append((data, where[0]))
    return found


def mounted_bpffs(folder: Path) -> Path:
    """Mount a bpffs there, open to root only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(folder)], check=True)
    return folder


def unmount(folder: Path) -> None:
    """Unmount whatever is mounted at a folder or below it; pins in it are gone with it."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((one for one in mounts if Path(one).is_relative_to(folder)), reverse=True):
        subprocess.run(["umount", mount], check=True)


@contextlib.contextmanager
def own_cgroup(parent: Path, name: str) -> Iterator[Path]:
    """A cgroup, gone afterwards with all below it. Processes in it have to have ended."""
    folder = parent / name
    folder.mkdir()
    try:
        yield folder
    finally:
        for found in sorted((str(one) for one in folder.glob("**/")), reverse=True):
            _leave(Path(found))
            _remove(found)


def _remove(cgroup: str) -> None:
    """A process that has ended leaves its cgroup a little later."""
    until = time.monotonic() + 10
    while True:
        try:
            os.rmdir(cgroup)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _leave(cgroup: Path) -> None:
    """This process, if a test moved it there, goes back."""
    if str(os.getpid()) in (cgroup / "cgroup.procs").read_text().split():
        (cgroup.parent / "cgroup.procs").write_text(str(os.getpid()))
