# SPDX-License-Identifier: Apache-2.0
"""What a packet costs in the kernel: first and known packets of random flows, against their bare lookups."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.load import machine
from tests.load.rounds import CONTROL, Table, measure

TITLE = "Kernel: a packet's first and later judgement at the veth"
ROOT = Path(__file__).resolve().parents[2]
SIZES = (10_000, 500_000)
FLOWS = 10_000
ENTRIES = 16_000
SPANS = 8
POLICIES = 8
KEPT, PACKETS = 1 << 20, 200_000  # rows of the table, packets a sample: none is evicted within one
DEFAULT_KEPT, DEFAULT_PACKETS = 65_536, 40_000  # the same of the size that the table has where nobody says another
_FIRST = 0x0A000000
_KINDS = {"first": "first", "known": "known", "default": "first, default table", "full": "first, default table full"}
_JUMPS = {"nothing": 0, "bare_first": 1, "bare_first_kept": 2, "bare_known": 3, "from_workload": 4}


def run(progress: Callable[[str], None]) -> dict:
    """ns a packet by number of endpoints and kind."""
    if os.geteuid() != 0:
        raise machine.Missing("not root")
    machine.pin(1)
    found: dict[str, Any] = {}
    for kept, kinds in ((KEPT, ("first", "known")), (DEFAULT_KEPT, ("default", "full"))):
        for endpoints in SIZES:
            with _bench(endpoints, kept) as bench:
                for kind in kinds:
                    names = ("bare_known",) if kind == "known" else ("bare_first", "bare_first_kept")
                    variants: dict[str, Callable[[], float | None]] = {
                        name: (lambda name=name, kind=kind: bench.cost(name, kind))
                        for name in (*names, "from_workload")
                    }
                    table = measure(variants, baseline=names[0], progress=progress)
                    found[f"{kind} {endpoints}"] = table.samples
    return found


def render(data: dict) -> str:
    lines = [
        f"BPF_PROG_TEST_RUN, a new random packet each time, {PACKETS:,} a sample; what choosing it costs is taken off. "
        f"Both directions judged; {ENTRIES:,} policy entries, each a list of {SPANS} ranges. Bare lookups: the word, "
        "interface, row, two endpoints, twice side, peer and the spans of a search; with insert: and the new row.",
        "",
        "| packet | endpoints | program ns | bare lookups ns | ratio (95%) | with insert ns | ratio | A/A |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, samples in data.items():
        kind, endpoints = key.split()
        bare = "bare_known" if kind == "known" else "bare_first"
        table = Table(bare, samples)
        ratio, control = table.ratio("from_workload"), table.ratio(CONTROL)
        kept, of_kept = "", ""
        if kind != "known":
            kept = f"{table.median('bare_first_kept'):.0f}"
            of_kept = f"{Table('bare_first_kept', samples).ratio('from_workload').median:.2f}"
        lines.append(
            f"| {_KINDS[kind]} | {int(endpoints):,} | {table.median('from_workload'):.0f} | {table.median(bare):.0f} | "
            f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) | {kept} | {of_kept} | "
            f"{control.low:.2f} to {control.high:.2f} |"
        )
    lines += [
        "",
        f"First: into a table of {KEPT:,} rows, empty before each sample. Default table: of {DEFAULT_KEPT:,}, and "
        f"{DEFAULT_PACKETS:,} packets a sample, so that none is evicted; full: {PACKETS:,} packets, and each new row "
        "takes the place of an old one.",
        "",
        f"Known: {FLOWS:,} flows in random order; the bare lookups are the word, the interface and the row.",
    ]
    return "\n".join(lines)


class _Bench:
    """Tables of a size, and packets that never repeat."""

    def __init__(self, desk: Any, endpoints: int) -> None:
        from tests.bpf.packet_desk import TCP
        from tests.bpf.packet_forms import ACK, SYN, packet, tcp

        self._desk = desk
        self._endpoints = endpoints
        self._packets = {
            kind: packet("10.0.0.1", "10.0.0.2", TCP, payload=tcp(1, 2, flags=flags))
            for kind, flags in (("first", SYN), ("default", SYN), ("full", SYN), ("known", ACK))
        }
        self._opened = self._full = False

    def fill(self) -> None:
        """The rows of slot 1, written straight: no revision is asked."""
        from tests.bpf.packet_desk import USED, Span
        from tests.bpf.packet_desk import row as layout

        desk, dice = self._desk, random.Random(1)
        identities = ENTRIES // (POLICIES * 2)
        row, prefix = layout("idm_endpoint_row"), bytes(10) + b"\xff\xff"
        ifindex = (desk.ifindex["a"], desk.ifindex["b"])
        for i in range(self._endpoints):
            value = row.pack(
                identity=1000 + dice.randrange(identities),
                endpoint=i,
                policy=dice.randrange(POLICIES),
                flags=1,
                ifindex=ifindex[i >= self._endpoints // 2],
            )
            desk.update("endpoints_1", prefix + struct.pack("!I", _FIRST + i), value)
        cuts = [65536 * i // SPANS for i in range(SPANS + 1)]
        index = 0
        for side in range(POLICIES * 2):
            value = layout("idm_side_row").pack(flags=USED, miss_verdict=2, miss_drop=133, any=(0, 0))
            desk.update("sides_1", struct.pack("=I", side), value)
            for identity in range(identities):
                key = layout("idm_peer_key").pack(side=side, identity=1000 + identity)
                desk.update("peers_1", key, struct.pack("=II", index, SPANS))
                for low, high in pairwise(cuts):
                    desk.update("spans", struct.pack("=I", index), Span(6, low, high - 1, entry=index).pack())
                    index += 1
        desk.attach("a")
        desk.config()
        desk.state(1)

    def cost(self, name: str, kind: str) -> float:
        """ns a packet, without what choosing it costs."""
        flows = FLOWS if kind == "known" else 0
        packets = DEFAULT_PACKETS if kind == "default" else PACKETS
        if kind == "known" and not self._opened:
            self._desk.forget_all()
            self._run("from_workload", kind, flows, FLOWS, walk=True)
            self._opened = True
        if kind != "known":
            self._empty(full=kind == "full")
        took = self._run(name, kind, flows, packets)
        # Rows that the bare insert made are nobody's.
        if name == "bare_first_kept":
            self._empty(full=False)
        return took - self._run("nothing", kind, flows, packets)

    def _empty(self, full: bool) -> None:
        """The table of connections before a sample."""
        self._opened = False
        if not full:
            self._desk.forget_all()
        elif not self._full:
            self._run("from_workload", "full", 0, 2 * DEFAULT_KEPT)
        self._full = full

    def _run(self, name: str, kind: str, flows: int, packets: int, walk: bool = False) -> float:
        plan = struct.pack("=8I", self._endpoints, flows, _JUMPS[name], walk, 0, POLICIES, 0, SPANS)
        self._desk.update("measured_plan", struct.pack("=I", 0), plan)
        return float(self._desk.repeat("next_packet", self._packets[kind], "a", packets))


@contextmanager
def _bench(endpoints: int, kept: int) -> Iterator[_Bench]:
    """Programs loaded over a bpffs of our own, in a namespace of their own."""
    from tests.bpf.net import mounted_bpffs, unmount
    from tests.bpf.packet_desk import Desk

    folder = Path(tempfile.mkdtemp(prefix="idmesh-load-"))
    try:
        built = _compiled(folder)
        sizes = {"endpoints_1": endpoints, "peers_1": ENTRIES, "spans": ENTRIES * SPANS}
        desk = Desk(mounted_bpffs(folder / "bpf"), ["a", "b"], connections=kept, sizes=sizes)
        try:
            desk.load(built)
            for name, place in _JUMPS.items():
                desk.update("measured_jumps", struct.pack("=I", place), struct.pack("=I", desk.program(name)))
            bench = _Bench(desk, endpoints)
            bench.fill()
            yield bench
        finally:
            desk.close()
    finally:
        unmount(folder)
        shutil.rmtree(folder)


def _compiled(folder: Path) -> Path:
    built = folder / "packets.bpf.o"
    flags = ["-g", "-O2", "-target", "bpf", "-mcpu=v3", "-std=gnu11"]
    include = [f"-I{ROOT / path}" for path in ("bpf/include", "bpf/lib", "build/bpf", "native/include")]
    command = ["clang", *flags, *include, "-c", str(ROOT / "tests/load/packets.bpf.c"), "-o", str(built)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise machine.Missing(f"clang: {done.stderr.strip()}")
    return built
