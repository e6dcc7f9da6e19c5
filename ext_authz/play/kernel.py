# SPDX-License-Identifier: Apache-2.0
"""The data path on a node of the test's own: loaded there, ends attached, its events and counters read."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ext_authz.play.events import SIZE, Event, events_of
from ext_authz.play.network import GATEWAY4, GATEWAY6, End, Space
from ext_authz.play.packets import mac_bytes
from ext_authz.play.results import PlayError

if TYPE_CHECKING:
    from ext_authz.datapath import Datapath

# Stands for Envoy's transparent listener. What is steered ends at the node: that is all L3/L4 says of it.
PROXY_PORT = 15001
EVENTS_ALLOWED = 1  # IDM_CONFIG_EVENTS_ALLOWED
_ROWS = {"connections": 65536, "endpoints": 4096, "prefixes": 4096, "sides": 4096, "peers": 65536, "spans": 65536}


class Kernel:
    """
    Use as a context: whatever was loaded is gone afterwards.

    Raises:
        PlayError: This machine or this process can have no data path; the message says why.
    """

    def __init__(self, node: Space) -> None:
        self._node, self._stack = node, contextlib.ExitStack()
        self._attached: dict[int, End] = {}
        self._listeners: list[socket.socket] = []
        self._domain = 0
        try:
            self.datapath = self._open()
        except BaseException:
            self._stack.close()
            raise

    def _open(self) -> Datapath:
        try:
            from ext_authz.datapath import Datapath, DatapathError
        except ImportError as error:
            raise PlayError(f"--via bpf: {error}") from None
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="idmesh-test-")))
        self._stack.callback(_unmount, folder / "bpf")
        try:
            with self._node.inside():
                made = Datapath.open(folder / "bpf", sizes=_ROWS)
            self._stack.callback(made.cleanup)
            made.config(proxy_port=PROXY_PORT, flags=EVENTS_ALLOWED)
            self._listen()
        except DatapathError as error:
            raise PlayError(f"--via bpf: {error}") from None
        return made

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._node.inside():
            self._stack.close()

    def _listen(self) -> None:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            listener = self._stack.enter_context(self._node.socket(family))
            listener.bind((address, PROXY_PORT))
            listener.listen()
            self._listeners.append(listener)

    # ---- who is here ----

    def publish(self, snapshot: bytes, revision: int) -> None:
        """Judge by this snapshot from now on."""
        from ext_authz.datapath import DatapathError

        try:
            self.datapath.publish(snapshot)
        except DatapathError as error:
            raise PlayError(f"revision {revision}: {error}") from None
        state = self.datapath.state()
        if state.revision != revision:
            raise PlayError(f"the kernel judges by revision {state.revision}, not {revision}")
        if state.domain != self._domain:  # with maps of its own, in which no socket is yet
            self._domain = state.domain
            for slot, listener in enumerate(self._listeners):
                self.datapath.update("listeners", struct.pack("=I", slot), struct.pack("=Q", listener.fileno()))

    def set_hosts(self, addresses: Iterable[str]) -> None:
        """The host's own addresses; those that workloads send through are too."""
        self.datapath.locals([*addresses, GATEWAY4, GATEWAY6])

    def attach(self, end: End, addresses: Iterable[str] | None = None) -> None:
        """Enforce policy on an end, which has these addresses (all of its own)."""
        with self._node.inside():
            self.datapath.attach(
                end.ifindex,
                end.addresses if addresses is None else addresses,
                mac_bytes(end.mac),
                peer_ifindex=end.peer_ifindex,
            )
        self._attached[end.ifindex] = end

    def detach(self, end: End) -> None:
        with self._node.inside():
            self.datapath.detach(end.ifindex)
        self._attached.pop(end.ifindex, None)

    def attach_only(self, end: End) -> None:
        """This end, and no other."""
        for other in list(self._attached.values()):
            if other is not end:
                self.detach(other)
        if end.ifindex not in self._attached:
            self.attach(end)

    # ---- what it says ----

    def events(self, timeout_s: float = 0.0) -> list[Event]:
        """Events that came since the last call; waits for the first one if there is none."""
        found: list[Event] = []
        data = self.datapath.events(timeout_ms=int(timeout_s * 1000))
        while data:
            found += events_of(data)
            data = self.datapath.events() if len(data) >= SIZE * 65536 else b""
        return found

    def counted(self) -> Counter[tuple[int, int]]:
        """Packets by drop reason (0: passed) and direction."""
        counters, lost = self.datapath.counters()
        if lost:
            raise PlayError(f"{lost} events found no room in the ring")
        return Counter({(one.drop_reason, one.direction): one.packets for one in counters})

    def run(self, program: str, frame: bytes, ifindex: int, ingress_ifindex: int) -> int:
        """What a program answers to one crafted frame (BPF_PROG_TEST_RUN). The caller is inside the node."""
        return self.datapath.run(program, frame, ifindex=ifindex, ingress_ifindex=ingress_ifindex).answer


def _unmount(folder: Path) -> None:
    """What a loading that failed midway leaves."""
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)
