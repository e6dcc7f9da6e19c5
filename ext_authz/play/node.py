# SPDX-License-Identifier: Apache-2.0
"""
The ends of probes around one node: who sends, who receives, and what really arrived.

Every peer has a namespace and its own addresses. The host is the node itself: what it sends comes from no veth.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Sequence
from types import TracebackType

from ext_authz.play.network import End, Network, Space
from ext_authz.play.packets import Traffic

# A steered packet is for the host's own stack, whatever address it is for.
_STEERING = (
    "route add local 0.0.0.0/0 dev lo table 2004",
    "route add local ::/0 dev lo table 2004",
    "rule add pref 9 fwmark 0x200/0xf00 lookup 2004",
)


class Node:
    """Places by their addresses: a namespace each, or the node for those of the host."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.network = self._stack.enter_context(Network())
        self._ends: dict[tuple[str, ...], End] = {}
        self._hosts: set[str] = set()
        self._receivers: dict[tuple[int, int, int], _Receiver] = {}
        self._number = 0
        try:
            self.network.node.ip(_STEERING)
            self.network.node.run(["ip", "-6", *_STEERING[-1].split()])
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Node:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for receiver in self._receivers.values():
            receiver.close()
        self._stack.close()

    @property
    def hosts(self) -> frozenset[str]:
        """Addresses of the host itself."""
        return frozenset(self._hosts)

    def end(self, addresses: Sequence[str]) -> End:
        """The namespace of these addresses, made when it is first asked for."""
        wanted = tuple(addresses)
        if wanted not in self._ends:
            self._vacate(wanted)
            self._number += 1
            self._ends[wanted] = self.network.add(f"end{self._number}", *wanted)
        return self._ends[wanted]

    def host(self, addresses: Sequence[str]) -> Space:
        """The node, which has these addresses from now on."""
        missing = [address for address in addresses if address not in self._hosts]
        if missing:
            self._vacate(tuple(missing))
            self.network.node.ip(f"address add {address} dev lo" for address in missing)
            self._hosts.update(missing)
        return self.network.node

    def _vacate(self, addresses: tuple[str, ...]) -> None:
        """An address has one place only."""
        for taken in [taken for taken in self._ends if set(taken) & set(addresses)]:
            end = self._ends.pop(taken)
            self._forget(end.space)
            self.network.remove(end.name)
        for address in self._hosts & set(addresses):
            self.network.node.ip([f"address del {address} dev lo"])
            self._hosts.discard(address)

    def _forget(self, space: Space) -> None:
        for key in [key for key in self._receivers if key[0] == space.descriptor]:
            self._receivers.pop(key).close()

    def listen(self, space: Space, traffic: Traffic) -> _Receiver:
        """Who sees what of this protocol really arrives there; from before the packet is sent."""
        key = (space.descriptor, int(traffic.family), traffic.protocol)
        if key not in self._receivers:
            self._receivers[key] = _Receiver(space.socket(traffic.family, socket.SOCK_RAW, traffic.protocol))
        return self._receivers[key]


def send(space: Space, traffic: Traffic) -> None:
    """One real packet from the sender's own address."""
    with space.socket(traffic.family, socket.SOCK_RAW, traffic.protocol) as line:
        line.bind((traffic.source, 0))
        line.sendto(traffic.segment(), (traffic.destination, 0))


class _Receiver:
    """A raw socket: it has what the stack of its namespace was given, whether or not anybody listens."""

    def __init__(self, line: socket.socket) -> None:
        self._socket = line
        self._seen: list[bytes] = []
        line.setblocking(False)

    def has(self, traffic: Traffic, timeout_s: float = 0.0) -> bool:
        """Whether the packet has come, within that time."""
        deadline = time.monotonic() + timeout_s
        while not any(traffic.marked() in data for data in self._read()):
            if not select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
        return True

    def _read(self) -> list[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._seen.append(self._socket.recv(65536))
        return self._seen

    def close(self) -> None:
        self._socket.close()
