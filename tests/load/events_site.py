# SPDX-License-Identifier: Apache-2.0
"""A node whose one pod is denied what it sends, the agent's reader and an observer behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ext_authz.agent.datapath_events import RING_BYTES, Events
from ext_authz.datapath import Datapath, DatapathError
from ext_authz.play.netns import NoNamespace
from ext_authz.play.network import GATEWAY4, GATEWAY6, Network
from ext_authz.state import State
from tests.bpf.net import unmount
from tests.bpf.packet_forms import packet
from tests.load import machine
from tests.load.pods_site import CLIENT, PEER_REDIRECT, SERVER, objects, snapshot
from tests.load.proxies import REST_CORE

BURST_MAX = 2000
_BURST_S, _SETTLE_S = 0.001, 5.0
_TCP, _CLOSED_PORT = 6, 9999
_DENIED, _EGRESS = 133, 1


class Bench:
    """A node with one pod that may send next to nothing."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._net = stack.enter_context(Network())
        client, server = self._net.add("client", CLIENT), self._net.add("server", SERVER)
        with self._net.node.inside():
            self._datapath = Datapath.open(folder / "bpf", objects())
        stack.callback(lambda: self._datapath.cleanup(self._net.node.descriptor))
        self._datapath.locals([GATEWAY4, GATEWAY6])
        self._datapath.publish(snapshot(10))
        self._datapath.config(flags=PEER_REDIRECT)
        with self._net.node.inside():
            for end in (client, server):
                self._datapath.attach(end.ifindex, end.addresses, end.mac, peer_ifindex=end.peer_ifindex)
        self.records_bytes = RING_BYTES
        self.ring_bytes = next(info.max_rows for info in self._datapath.maps() if info.name == "events")
        frame = packet(CLIENT, SERVER, _TCP, 4000, _CLOSED_PORT)
        self._frame = frame[:6] + bytes.fromhex(client.mac.replace(":", "")) + frame[12:]
        self._ifindex = client.ifindex
        state = State(folder / "state")
        state.prepare()
        self._observer = stack.enter_context(_observer(state, folder / "observer.log"))
        self._events = Events(lambda wait_ms: self._datapath.events(timeout_ms=wait_ms), state.root / "flows.sock")
        self._hand_over(folder / "observer.log")
        self._events.start()
        stack.callback(self._events.stop)
        # Away from the thread that makes the denials.
        reader = next(thread for thread in threading.enumerate() if thread.name == "events")
        assert reader.native_id is not None
        os.sched_setaffinity(reader.native_id, {REST_CORE})
        self._reader = Path(f"/proc/self/task/{reader.native_id}")

    def _hand_over(self, log: Path) -> None:
        end = time.monotonic() + 20
        while "ring taken in" not in log.read_text():
            if time.monotonic() > end:
                raise RuntimeError(f"the observer takes no ring: {log.read_text()[-2000:]}")
            self._events.offer()
            time.sleep(0.1)

    def offer(self, rate: float, seconds: float) -> dict[str, float]:
        """Denials at that rate for so long, until each was written or counted as lost; what it took and lost."""
        before, cpu, dropped, start = self._told(), self._cpu(), self._dropped(), time.monotonic()
        sent = self._deny(rate, start, start + seconds)
        took = time.monotonic() - start
        after = self._settled(before, sent)
        denied, others = (now - then for now, then in zip(self._dropped(), dropped, strict=True))
        if denied != sent:
            raise RuntimeError(f"{denied} of {sent} packets were denied by policy")
        reader, observer = (now - then for now, then in zip(self._cpu(), cpu, strict=True))
        kernel, ring, written = (now - then for now, then in zip(after, before, strict=True))
        # The namespaces' kernels speak now and then unasked (IPv6).
        if not sent <= kernel + ring + written <= sent + others:
            raise RuntimeError(
                f"{sent} events: {written} written, {kernel} and {ring} lost, the others unaccounted for"
            )
        lost = {"kernel_lost": kernel, "ring_lost": ring}
        return {"sent": sent, "seconds": took, "reader_s": reader, "observer_s": observer, **lost}

    def _deny(self, rate: float, start: float, end: float) -> int:
        burst, sent = max(1, min(BURST_MAX, int(rate * _BURST_S))), 0
        node = self._net.node.descriptor
        while time.monotonic() < end:
            self._datapath.run("from_workload", self._frame, ifindex=self._ifindex, repeat=burst, netns=node)
            sent += burst
            while time.monotonic() < start + sent / rate:
                time.sleep(0)  # so that the reader's thread gets its turn
        return sent

    def _told(self) -> tuple[int, int, int]:
        counts = self._events.counts()
        return self._datapath.counters()[1], counts["lost"], counts["written"]

    def _settled(self, before: tuple[int, int, int], sent: int) -> tuple[int, int, int]:
        end = time.monotonic() + _SETTLE_S
        while sum(now := self._told()) - sum(before) < sent and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)  # what the observer still has to take counts as its CPU
        return now

    def _dropped(self) -> tuple[int, int]:
        """Packets denied by policy on their way out, and all others that were dropped."""
        counters = self._datapath.counters()[0]
        denied = sum(one.packets for one in counters if (one.drop_reason, one.direction) == (_DENIED, _EGRESS))
        return denied, sum(one.packets for one in counters if one.drop_reason) - denied

    def _cpu(self) -> tuple[float, float]:
        observer = sum(machine.cpu_seconds(task) for task in (self._observer / "task").iterdir())
        return machine.cpu_seconds(self._reader), observer


@contextmanager
def bench() -> Iterator[Bench]:
    """All of it, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="idmesh-load-"))
    try:
        with ExitStack() as stack:
            try:
                made = Bench(stack, folder)
            except (DatapathError, NoNamespace) as error:
                raise machine.Missing(str(error)) from error
            yield made
    finally:
        unmount(folder)
        shutil.rmtree(folder)


@contextmanager
def _observer(state: State, log: Path) -> Iterator[Path]:
    argv = ["taskset", "-c", str(REST_CORE), sys.executable, "-m", "ext_authz.flow.observer", "--state"]
    with log.open("wb") as out:
        process = subprocess.Popen([*argv, str(state.root)], stdout=out, stderr=out)
    try:
        yield Path(f"/proc/{process.pid}")
    finally:
        process.terminate()
        process.wait(20)
