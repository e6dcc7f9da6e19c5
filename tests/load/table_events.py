# SPDX-License-Identifier: Apache-2.0
"""
Events: from the kernel's ring through the agent's reader to the observer, at offered rates.

One core denies packets (BPF_PROG_TEST_RUN of from_workload, an event for each). The other one has all of the reading:
the agent's thread that takes events and makes flow records, and the observer process that takes the records.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ext_authz.agent.datapath_events import RING_BYTES, Events
from ext_authz.datapath import Datapath, DatapathError
from ext_authz.play.netns import NoNamespace
from ext_authz.play.network import GATEWAY4, GATEWAY6, Network
from ext_authz.state import State
from tests.bpf.net import unmount
from tests.bpf.packet_forms import packet
from tests.load import machine
from tests.load.pods_site import CLIENT, SERVER, objects, snapshot
from tests.load.proxies import REST_CORE, WORKER_CORE

TITLE = "Events: denials told by the kernel, as far as the observer"
SECONDS = 1.0
ROUNDS = int(os.environ.get("IDMESH_BENCH_ROUNDS", "20"))
RATES = {"250,000": 0.25e6, "500,000": 0.5e6, "1,000,000": 1e6, "1,500,000": 1.5e6, "no limit": 1e9}
WANTED = "1,000,000"
_BURST_S, _BURST_MAX = 0.001, 2000
_SETTLE_S = 5.0
_TCP, _CLOSED_PORT = 6, 9999
_DENIED, _EGRESS = 133, 1


def run(progress: Callable[[str], None]) -> dict:
    """By offered rate, and round: denied, lost in either ring, seconds, CPU seconds of the reader and the observer."""
    if os.geteuid() != 0:
        raise machine.Missing("root")
    names, dice = list(RATES), random.Random(1)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    cores = os.sched_getaffinity(0)
    with ExitStack() as stack:
        bench = stack.enter_context(_bench())
        stack.callback(os.sched_setaffinity, 0, cores)
        machine.pin(WORKER_CORE)
        for number in range(ROUNDS):
            dice.shuffle(names)
            for name in names:
                progress(f"round {number + 1}/{ROUNDS} {name}/s")
                found[name].append(bench.offer(RATES[name]))
    return {"rounds": found, "ring_bytes": bench.ring_bytes, "records_bytes": RING_BYTES}


class _Bench:
    """A node with one pod that may send next to nothing."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._net = stack.enter_context(Network())
        client, server = self._net.add("client", CLIENT), self._net.add("server", SERVER)
        with self._net.node.inside():
            self._datapath = Datapath.open(folder / "bpf", objects())
        stack.callback(lambda: self._datapath.cleanup(self._net.node.descriptor))
        self._datapath.locals([GATEWAY4, GATEWAY6])
        self._datapath.publish(snapshot(10))
        self._datapath.config(flags=3)
        with self._net.node.inside():
            for end in (client, server):
                self._datapath.attach(end.ifindex, end.addresses, end.mac, peer_ifindex=end.peer_ifindex)
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
        # All of the process runs there, but for the thread that makes the denials.
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

    def offer(self, rate: float) -> dict[str, float]:
        """Denials at that rate for a while, until each was written or counted as lost."""
        before, cpu, denied, start = self._told(), self._cpu(), self._denied(), time.monotonic()
        sent = self._deny(rate, start)
        took = time.monotonic() - start
        after = self._settled(before, sent)
        if self._denied() - denied != sent:
            raise RuntimeError(f"{self._denied() - denied} of {sent} packets were denied by policy")
        reader, observer = (now - then for now, then in zip(self._cpu(), cpu, strict=True))
        kernel, ring, written = (now - then for now, then in zip(after, before, strict=True))
        if kernel + ring + written != sent:
            raise RuntimeError(
                f"{sent} events: {written} written, {kernel} and {ring} lost, the others unaccounted for"
            )
        lost = {"kernel_lost": kernel, "ring_lost": ring}
        return {"sent": sent, "seconds": took, "reader_s": reader, "observer_s": observer, **lost}

    def _deny(self, rate: float, start: float) -> int:
        burst, sent = max(1, min(_BURST_MAX, int(rate * _BURST_S))), 0
        node = self._net.node.descriptor
        while time.monotonic() < start + SECONDS:
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

    def _denied(self) -> int:
        counters = self._datapath.counters()[0]
        return sum(one.packets for one in counters if (one.drop_reason, one.direction) == (_DENIED, _EGRESS))

    def _cpu(self) -> tuple[float, float]:
        observer = sum(machine.cpu_seconds(task) for task in (self._observer / "task").iterdir())
        return machine.cpu_seconds(self._reader), observer


@contextmanager
def _bench() -> Iterator[_Bench]:
    folder = Path(tempfile.mkdtemp(prefix="idmesh-load-"))
    try:
        with ExitStack() as stack:
            try:
                made = _Bench(stack, folder)
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


# ---- the table ----


def render(data: dict) -> str:
    rounds = len(data["rounds"][WANTED])
    lines = [
        f"The kernel's ring has {data['ring_bytes'] >> 20} MiB, the observer's {data['records_bytes'] >> 20} MiB. "
        f"{rounds} rounds of {SECONDS:g} s. One core denies packets, up to {_BURST_MAX:,} in a row, and does nothing "
        "else; reader and observer share the other. Lost is what either ring's own counter says; written and lost "
        "together are all that was denied.",
        "",
        "| wanted/s | offered/s | rounds without loss | lost by the kernel's ring | by the observer's | "
        "reader CPU ns/event | observer CPU ns/event | of the core |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, samples in data["rounds"].items():
        sent = sum(one["sent"] for one in samples)
        whole = sum(not _lost(one) for one in samples)
        cells = [name, f"{_offered(samples):,.0f}", f"{whole} of {len(samples)}"]
        cells += [f"{sum(one[kind] for one in samples) / sent:.2%}" for kind in ("kernel_lost", "ring_lost")]
        cells += [f"{_median(samples, kind, 'sent') * 1e9:.0f}" for kind in ("reader_s", "observer_s")]
        busy = statistics.median((one["reader_s"] + one["observer_s"]) / one["seconds"] for one in samples)
        lines.append(f"| {' | '.join(cells)} | {busy:.0%} |")
    return "\n".join([*lines, "", _verdict(data["rounds"])])


def _verdict(rounds: dict[str, list[dict[str, Any]]]) -> str:
    samples = rounds[WANTED]
    lossy = sum(bool(_lost(one)) for one in samples)
    enough = _offered(samples) >= 0.99 * RATES[WANTED]
    text = f"Wanted {WANTED}/s without loss on one core: "
    if not enough:
        return f"{text}not offered, the other core denied only {_offered(samples):,.0f}/s."
    return text + (f"not reached, {lossy} of {len(samples)} rounds lost some." if lossy else "reached.")


def _lost(sample: dict[str, Any]) -> float:
    return float(sample["kernel_lost"] + sample["ring_lost"])


def _offered(samples: list[dict[str, Any]]) -> float:
    return statistics.median(one["sent"] / one["seconds"] for one in samples)


def _median(samples: list[dict[str, Any]], part: str, whole: str) -> float:
    return statistics.median(one[part] / one[whole] for one in samples)
