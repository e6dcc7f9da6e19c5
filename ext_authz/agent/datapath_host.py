# SPDX-License-Identifier: Apache-2.0
"""
What the data path needs of this host, and how all of it is put back: rules, routes, sysctls, Envoy's cgroup.

What is changed is written down before it is changed (STATE/datapath/routing.json), so that a clean-up by a later
process finds it.
"""

from __future__ import annotations

import socket
from pathlib import Path

from ext_authz.agent import cgroups
from ext_authz.agent.attachments import Attachment
from ext_authz.agent.netlink import Netlink
from ext_authz.datapath.routing import Routing
from ext_authz.state import State


class Host:
    """
    Raises from its constructor:
        RoutingError: What an earlier process wrote down cannot be read back.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self.routing = Routing(state.datapath / "routing.json")

    @property
    def base(self) -> Path | None:
        """The cgroup above all."""
        return cgroups.base()

    @property
    def envoy_folder(self) -> Path | None:
        """Envoy's cgroup."""
        return cgroups.envoy_cgroup(self._state)

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


class Addresses:
    """The host's own addresses, followed as they change."""

    def __init__(self) -> None:
        self._netlink = Netlink()
        self.descriptor = self._netlink.watch()
        self.known: frozenset[str] = frozenset()

    def look(self) -> bool:
        """True if they are others than at the last look."""
        self._netlink.drain()
        with Netlink() as netlink:
            found = netlink.own()
        changed, self.known = found != self.known, found
        return changed

    def close(self) -> None:
        self._netlink.close()
