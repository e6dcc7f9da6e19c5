# SPDX-License-Identifier: Apache-2.0
"""
Policies swapped and programs replaced under traffic: nothing that is allowed is lost, nothing else ever passes.

A flow that some revisions allow is sent in bursts, between one swap and the next: all of a burst arrives, or none.
IDMESH_SWAPS: how many revisions (300 here, 10,000 in `make soak`); IDMESH_UPGRADES: how many replacements of all
programs (10 here, 100 in `make soak`).
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ext_authz.play.prepare import Prepared
from tests.bpf.net import End, eventually
from tests.bpf.site import Site, allow, pod
from tests.bpf.traffic import Datagrams, Exchange, Knocking, Opening, Watch, running

SWAPS = int(os.environ.get("IDMESH_SWAPS", "300"))
UPGRADES = int(os.environ.get("IDMESH_UPGRADES", "10"))
SEED = int(os.environ.get("IDMESH_SWAPS_SEED", "0")) or random.randrange(1, 1 << 32)
CLIENT, OTHER, SERVER = "10.0.0.1", "10.0.0.2", "10.0.0.3"
# Always allowed to the client: connections that last, new ones, datagrams, the last of a burst. Sometimes: turns.
STAYS, OPENS, SAYS, ENDS, TURNS = 80, 81, 82, 83, 84
PODS = {"client": pod("client", CLIENT), "other": pod("other", OTHER), "server": pod("server", SERVER)}
VARIANTS, BURST = 8, 3


def policies(variant: int) -> list[dict[str, Any]]:
    """Odd ones let the turning flow pass; no two have the same tables."""
    found = [allow("server", "client", port) for port in (STAYS, OPENS)]
    found += [allow("server", "client", port, "UDP") for port in (SAYS, ENDS)]
    found += [allow("server", "client", port, "UDP") for port in range(1000, 1000 + 7 * variant, 2)]
    return [*found, allow("server", "client", TURNS, "UDP")] if variant % 2 else found


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(PODS, policies(0)) as made:
        yield made


class Turning:
    """A flow that some revisions allow, of an old socket and of one that is new in each burst."""

    def __init__(self, client: End, server: End) -> None:
        self._from = client
        self._old = client.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._server, self._end = (server.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for line, port in ((self._server, TURNS), (self._end, ENDS)):
            line.bind((SERVER, port))
        self._server.setblocking(False)
        self._end.settimeout(20)
        self.sent = {False: 0, True: 0}
        self.arrived = {False: 0, True: 0}

    def burst(self, number: int, allowed: bool) -> None:
        """Sent and seen off while one revision is in force."""
        with self._from.socket(socket.AF_INET, socket.SOCK_DGRAM) as new:
            for line in (self._old, new):
                for _ in range(BURST):
                    line.sendto(struct.pack("=Q?", number, allowed), (SERVER, TURNS))
            self.sent[allowed] += 2 * BURST
            # On one CPU packets keep their order: what was before this one has arrived, or never will.
            self._old.sendto(struct.pack("=Q", number), (SERVER, ENDS))
        (end,) = struct.unpack("=Q", self._end.recv(64))
        assert end == number
        for word in self._drain():
            self.arrived[struct.unpack("=Q?", word)[1]] += 1

    def _drain(self) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                yield self._server.recv(64)

    def close(self) -> None:
        for line in (self._old, self._server, self._end):
            line.close()


@contextlib.contextmanager
def one_cpu() -> Iterator[None]:
    """The calling thread stays where it is."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Traffic:
    """What is allowed always, what is denied always, and the counts of both."""

    def __init__(self, site: Site) -> None:
        client, other, server = (site[name] for name in PODS)
        self.lasting, self.opening = Exchange(client, server, (SERVER, STAYS)), Opening(client, server, (SERVER, OPENS))
        self.said = Datagrams(client, server, (SERVER, SAYS))
        self.shut = Datagrams(other, server, (SERVER, 85))
        self.knocking = Knocking(other, (SERVER, OPENS))
        self.flows = (self.lasting, self.opening, self.said, self.shut, self.knocking)
        self._watch = Watch(server, OTHER)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        with self._watch, running(*self.flows):
            eventually(lambda: min(flow.times for flow in self.flows) > 2, 30, "traffic does not begin")
            yield
            self.leaked = self._watch.count()

    def check(self) -> None:
        assert [flow.broken for flow in self.flows] == [""] * len(self.flows)
        assert self.said.arrived == self.said.sent
        assert (self.shut.arrived, self.knocking.came, self.leaked) == (0, 0, 0)

    def __str__(self) -> str:
        return (
            f"lasting connection {self.lasting.times} exchanges, {self.opening.times} new connections, "
            f"{self.said.arrived} of {self.said.sent} datagrams; "
            f"denied: {self.shut.sent + self.knocking.times} tries, {self.leaked} frames"
        )


def test_policies_are_swapped_under_traffic_and_no_packet_is_lost_or_passes_unjudged(site: Site) -> None:
    chance, made = random.Random(SEED), [site.apply(policies(variant)) for variant in range(VARIANTS)]
    traffic, turning = Traffic(site), Turning(site["client"], site["server"])
    with contextlib.closing(turning), traffic.going_on(), one_cpu():
        for number in range(SWAPS):
            variant = chance.randrange(VARIANTS)
            swap(site, made[variant])
            turning.burst(number, bool(variant % 2))
    print(
        f"seed {SEED}: {SWAPS} swaps; {traffic}; a flow that some revisions allow: "
        f"{turning.arrived[True]} of {turning.sent[True]} in those, "
        f"{turning.arrived[False]} of {turning.sent[False]} in others"
    )
    traffic.check()
    assert turning.arrived == {True: turning.sent[True], False: 0}
    assert min(turning.sent.values()) > 0


def swap(site: Site, to: Prepared) -> None:
    site.kernel.publish(to.snapshot, to.revision)


def test_programs_are_replaced_under_traffic_and_no_packet_is_lost_or_passes_unjudged(site: Site) -> None:
    """All programs on all hooks, as the loader of a new version replaces those of the one before."""
    made = {allowed: site.apply(policies(int(allowed))) for allowed in (False, True)}
    traffic, turning = Traffic(site), Turning(site["client"], site["server"])
    replaced: list[int] = []

    def replace() -> int:
        with site.net.node.inside():
            return site.kernel.datapath.upgrade()

    with contextlib.closing(turning), traffic.going_on(), ThreadPoolExecutor(1) as loader:
        loader.submit(int).result()  # its thread begins here, and is not bound to one CPU
        with one_cpu():
            for number in range(UPGRADES):
                swap(site, made[bool(number % 2)])
                upgrade = loader.submit(replace)
                while not upgrade.done():
                    turning.burst(number, bool(number % 2))
                    time.sleep(0.005)
                replaced.append(upgrade.result())
    print(
        f"{UPGRADES} upgrades of {2 * len(PODS)} hooks; {traffic}; meanwhile of a flow that is allowed in turns: "
        f"{turning.arrived[True]} of {turning.sent[True]} while it is, "
        f"{turning.arrived[False]} of {turning.sent[False]} else"
    )
    assert replaced == [2 * len(PODS)] * UPGRADES
    traffic.check()
    assert turning.arrived == {True: turning.sent[True], False: 0}
    assert min(turning.sent.values()) > 0
