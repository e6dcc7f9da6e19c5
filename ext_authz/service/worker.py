# SPDX-License-Identifier: Apache-2.0
"""
One worker process: one address, one serving thread, one snapshot in force.

It outlives the agent that started it: with the agent gone it goes on deciding from the last snapshot. SIGTERM
drains it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TypeVar

from ext_authz import logs
from ext_authz.logs import event
from ext_authz.memory import trim
from ext_authz.privileges import OF_DATA_PATH, give_up
from ext_authz.service import checker, health, processor, ring
from ext_authz.service.checker import Checker
from ext_authz.service.follow import Follower
from ext_authz.service.health import Health
from ext_authz.service.listen import Address, parse_address
from ext_authz.service.loop import STREAMS_MAX, LoopServer
from ext_authz.service.processor import Processor
from ext_authz.service.ring import Ring
from ext_authz.service.store import Store
from ext_authz.state import State, write_json

log = logging.getLogger(__name__)

_LOOK_S = 0.25  # fallback where inotify is missing or lost an event
_REPORT_S = 2.0
_OFFER_S = 1.0
_CROWD = 1000  # streams whose memory is worth giving back
_BIND_S = 10.0

K = TypeVar("K")


class Worker:
    """Everything one worker process holds."""

    def __init__(
        self,
        state: State,
        address: Address,
        direction: str = "ingress",
        group: int | None = None,
        *,
        streams_max: int = STREAMS_MAX,
        flow_ring_bytes: int = ring.DEFAULT_BYTES,
    ) -> None:
        self.state = state
        self.address = address
        self.group = group
        self.store = Store()
        self.follower = Follower(state.snapshot, self.store)
        self.checker = Checker(self.store, direction)
        self.processor = Processor(self.checker)
        self.ring = Ring(self.checker, state.root / "flows.sock", flow_ring_bytes)
        self.health = Health(lambda: self.store.revision > 0)
        self.server = LoopServer(
            {checker.METHOD: self.checker.method, health.METHOD: self.health.method},
            {processor.METHOD: self.processor.method},
            streams_max,
        )
        self._reported: dict[str, object] = {}
        self._crowd = 0  # most streams seen at once since memory was given back
        self._trims = 0  # how often it is still to be given back

    def start(self) -> None:
        self.follower.look()
        _bind(self.server, self.address, self.group)
        self.server.start()
        self.report()
        event(log, logging.INFO, "serving", address=self.address.text, revision=self.store.revision)

    def report(self) -> None:
        """Say in the state directory which revision decides here; only if something changed."""
        page = self._page()
        if page == self._reported:
            return
        self._reported = page
        try:
            write_json(self.state.readers / f"{os.getpid()}.json", {**page, "updated": time.time()})
        except OSError as error:  # telling is not deciding
            event(log, logging.WARNING, "cannot write the reader's page", reason=error)

    def _page(self) -> dict[str, object]:
        """`counts` and `drops` are both doors' together; `ext_proc` tells that door's share."""
        streams = self.server.streams
        return {
            "door": "ext-authz",
            "pid": os.getpid(),
            "address": self.address.text,
            "ready": self.store.revision > 0,
            "workers": 1,
            "revision": self.store.revision,
            "digest": self.store.digest,
            "in_force_since": self.follower.loaded_at,
            "counts": dict(_sum(self.checker.counts, self.processor.counts)),
            "drops": _texts(_sum(self.checker.drops, self.processor.drops)),
            "ext_proc": {
                "counts": dict(self.processor.counts),
                "drops": _texts(self.processor.drops.copy()),
                "observed": self.processor.observed,
                "streams": len(streams.open),
                "streams_max": streams.most,
                "streams_refused": streams.refused,
            },
            "flows": self.ring.counts(),
            "rejected": self.follower.rejected,
            "error": self.follower.problem,
        }

    def run(self, wake: socket.socket) -> None:
        """Serve until the wake socket speaks (a signal came)."""
        poller = select.poll()
        poller.register(wake, select.POLLIN)
        if self.follower.fileno() >= 0:
            poller.register(self.follower.fileno(), select.POLLIN)
        reported = offered = 0.0
        while True:
            ready = poller.poll(_LOOK_S * 1000)
            if any(number == wake.fileno() for number, _ in ready):
                return
            if time.monotonic() - offered > _OFFER_S:
                self.ring.offer()
                self._give_back()
                offered = time.monotonic()
            if self.follower.look() or time.monotonic() - reported > _REPORT_S:
                self.report()
                reported = time.monotonic()

    def _give_back(self) -> None:
        """Return memory after a crowd of streams, and once more: what held the last of them goes a little later."""
        now = len(self.server.streams.open)
        if self._crowd > max(_CROWD, 2 * now):
            self._crowd, self._trims = 0, 2
        self._crowd = max(self._crowd, now)
        if self._trims:
            self._trims -= 1
            trim()

    def stop(self, grace_s: float) -> None:
        self.health.draining = True
        clean = self.server.stop(grace_s)
        with contextlib.suppress(OSError):
            os.unlink(self.state.readers / f"{os.getpid()}.json")
        event(log, logging.INFO, "stopped", drained=clean)


def _sum(one: Counter[K], other: Counter[K]) -> Counter[K]:
    """Counters.__add__ drops what is zero."""
    total = one.copy()
    total.update(other.copy())
    return total


def _texts(drops: Counter[int]) -> dict[str, int]:
    return {str(reason): count for reason, count in drops.items()}


def _bind(server: LoopServer, address: Address, group: int | None) -> None:
    """
    Listen. A unix socket is made under a name of this process and renamed into place: it has its mode before
    anybody can connect, a stale file is no obstacle, and a predecessor that ends later cannot remove it.
    """
    if not address.path:
        _bind_tcp(server, address)
        return
    staged = f"{address.path}.{os.getpid()}"
    before = os.umask(0o177)
    try:
        server.bind(f"unix:{staged}")
    finally:
        os.umask(before)
    if group is not None:
        os.chown(staged, -1, group)
    os.chmod(staged, 0o660)
    os.rename(staged, address.path)


def _bind_tcp(server: LoopServer, address: Address) -> None:
    """A predecessor may still be draining: try for a while."""
    until = time.monotonic() + _BIND_S
    while True:
        try:
            server.bind(address.text)
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _wake_on_signals() -> socket.socket:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    _HELD.append(theirs)
    return ours


_HELD: list[socket.socket] = []


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="idmesh-worker")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--direction", choices=("ingress", "egress", "both"), default="ingress")
    parser.add_argument("--group", type=int)
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=STREAMS_MAX, help="open at once; more are refused")
    parser.add_argument("--flow-ring-bytes", type=int, default=ring.DEFAULT_BYTES, help="0: no flow records")
    parser.add_argument("--log", default="INFO")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    logs.install(args.log)
    give_up(OF_DATA_PATH)
    wake = _wake_on_signals()
    worker = Worker(
        State(args.state),
        parse_address(args.listen),
        args.direction,
        args.group,
        streams_max=args.streams,
        flow_ring_bytes=args.flow_ring_bytes,
    )
    try:
        worker.start()
    except OSError as error:
        event(log, logging.ERROR, "cannot serve", reason=error)
        return 1
    worker.run(wake)
    worker.stop(args.grace)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
