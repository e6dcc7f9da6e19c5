# SPDX-License-Identifier: Apache-2.0
"""
What the data path needs of this host, and how all of it is put back: rules, routes, sysctls, Envoy's cgroup.

What is changed is written down before it is changed (STATE/datapath/routing.json), so that a clean-up by a later
process finds it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import time
from pathlib import Path

from ext_authz.agent import cgroups
from ext_authz.agent.attachments import Attachment
from ext_authz.agent.datapath_strangers import find_strangers
from ext_authz.agent.netlink import Netlink
from ext_authz.datapath.errors import Locked, Occupied
from ext_authz.datapath.routing import Routing, RoutingError
from ext_authz.process import command_line
from ext_authz.state import State

# The longest a process takes to be gone that was killed.
_DYING_S, _LOOK_S = 5.0, 0.02


class Host:
    """
    Raises from its constructor:
        RoutingError: What an earlier process wrote down cannot be read back.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._claims: list[int] = []
        self.routing = Routing(state.datapath / "routing.json")

    @property
    def base(self) -> Path | None:
        """The cgroup above all."""
        return cgroups.base()

    @property
    def envoy_folder(self) -> Path | None:
        """Envoy's cgroup."""
        return cgroups.envoy_cgroup(self._state)

    def claim(self) -> None:
        """
        One node for a network namespace, and one for the cgroups above it, whatever their state directories are: two
        would take each other's marks for forged. Held until this process ends.

        Raises:
            Locked: Another one drives them.
            OSError: They cannot be opened.
        """
        for what, place in (("network namespace", Path("/proc/thread-self/ns/net")), ("cgroup hierarchy", self.base)):
            if place is None:
                continue
            handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            self._claims.append(handle)
            if not self._lock(handle):
                holder = _holder(handle)
                raise Locked(
                    f"another node drives the data path of this {what}{f' (process {holder})' if holder else ''}: "
                    "one a host; use its state directory, or end it and run idmesh run --cleanup with that"
                )

    def _lock(self, handle: int) -> bool:
        """The process of an agent that was killed lets go as soon as the kernel has ended it, and is waited for."""
        root, until = os.fsencode(self._state.root), time.monotonic() + _DYING_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                words = command_line(holder) if (holder := _holder(handle)) else []
                if (words and root not in words) or time.monotonic() > until:
                    return False
            time.sleep(_LOOK_S)

    def alone(self) -> None:
        """
        Nobody else's programs judge here, which a dead node with another state directory may have left.

        Raises:
            Occupied: With what was found, and how to be rid of it.
        """
        if found := find_strangers(self._state, self.base):
            raise Occupied("; ".join(map(str, found)))

    def release(self) -> None:
        """Let go of what claim() holds."""
        while self._claims:
            os.close(self._claims.pop())

    def envoy(self) -> int:
        """
        The id of Envoy's cgroup, made if need be; 0: this host has no cgroup2.

        Raises:
            OSError: It cannot be made.
        """
        return cgroups.make(self.envoy_folder) if self.envoy_folder else 0

    def steer(self) -> None:
        """
        Rules and routes for steered packets.

        Raises:
            RoutingError: Something else stands in their place.
        """
        self.routing.set()

    def mend(self) -> str:
        """Put rules and routes back that somebody flushed. Why they cannot be, or empty."""
        try:
            self.routing.mend()
        except (RoutingError, OSError) as error:
            return str(error)
        return ""

    def set_link(self, attachment: Attachment, up: bool) -> None:
        """
        Raises:
            OSError: Its interface is gone, or cannot be set.
        """
        name = socket.if_indextoname(attachment.ifindex)
        words = ["ip", "link", "set", "dev", name, "up" if up else "down"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")

    def add(self, attachment: Attachment) -> None:
        """
        Raises:
            OSError, RoutingError: The interface is gone, or cannot be set up.
        """
        if attachment.ifindex:
            self.routing.add(socket.if_indextoname(attachment.ifindex))

    def remove(self, attachment: Attachment) -> list[str]:
        """A line for what could not be put back; with the interface gone there is nothing to."""
        try:
            name = socket.if_indextoname(attachment.ifindex) if attachment.ifindex else ""
        except OSError:
            self.routing.forget_gone()
            return []
        return self.routing.remove(name) if name else []

    def problems(self, attached: list[Attachment]) -> list[str]:
        """A line for everything that by now keeps steered packets from arriving."""
        found = self.routing.check()
        for attachment in attached:
            try:
                name = socket.if_indextoname(attachment.ifindex) if attachment.ifindex else ""
            except OSError:
                continue
            found += self.routing.check_interface(name) if name else []
        return found

    def restore(self) -> list[str]:
        """Everything as it was; a line for what could not be."""
        problems = self.routing.restore()
        if self.envoy_folder and (problem := cgroups.remove(self.envoy_folder)):
            problems.append(problem)
        return problems


def _holder(handle: int) -> int:
    """Who holds the lock of an open file, as the kernel lists it; 0: nobody that we see."""
    inode = os.fstat(handle).st_ino
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return 0
    for words in map(str.split, lines):
        if "FLOCK" in words and len(words) > 5 and words[5].rpartition(":")[2] == str(inode):
            return int(words[4]) if words[4].isdigit() else 0
    return 0


class Addresses:
    """The host's own addresses, followed as they change."""

    def __init__(self) -> None:
        self._netlink = Netlink()
        self.descriptor = self._netlink.watch()
        self.known: frozenset[str] = frozenset()

    def look(self) -> None:
        self._netlink.drain()
        with Netlink() as netlink:
            self.known = netlink.own()

    def close(self) -> None:
        self._netlink.close()
