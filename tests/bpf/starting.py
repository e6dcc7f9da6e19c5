# SPDX-License-Identifier: Apache-2.0
"""Workloads started while they are attached, and everything that arrives of them elsewhere, by the kernel's clock."""

from __future__ import annotations

import mmap
import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ext_authz.datapath.addresses import packed
from ext_authz.datapath.layout import NO_INDEX, row
from ext_authz.datapath.pinned import PinnedMap
from tests.bpf.net import ETH_ALL, GATEWAY4, GATEWAY6, INTERFACE, End, Space, eventually
from tests.bpf.node_run import NodeRun
from tests.bpf.state import attached_programs

KINDS = ("held", "early", "last", "cgroup early", "cgroup last", "early", "held", "cgroup early")
PORT, PORTS = 20000, 10000
WEB, WEB6 = "10.1.0.1", "fd00:1::1"
SHUT, SHUT6 = "10.1.0.2", "fd00:1::2"
OUT, OUT6 = "192.0.2.1", "2001:db8::1"
OUT_SHUT, OUT_SHUT6 = "192.0.2.2", "2001:db8::2"
ALLOWED, DENIED = (WEB, WEB6, OUT, OUT6), (SHUT, SHUT6, OUT_SHUT, OUT_SHUT6)
# bpf_attach_type
_TCX = (46, 47)
_CGROUP = (0, 1, 2, 3, 8, 9, 10, 11, 14, 15, 19, 20, 29, 30)
# Each of so many is not detached, but found to be gone.
_LEFT = 8
_TIMES, _TIMES_SIZE, _FORCE_BUFFER = 35, 16, 33


class Arrivals(threading.Thread):
    """Every frame that arrives somewhere for our ports: when, by the kernel's clock, by destination and port."""

    def __init__(self, *ends: End) -> None:
        super().__init__(daemon=True)
        self._sockets = [self._open(end) for end in ends]
        self.seen: dict[int, list[tuple[int, str, str]]] = defaultdict(list)
        self.lost = 0
        self._ending = threading.Event()

    @staticmethod
    def _open(end: End) -> socket.socket:
        line = end.space.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        line.setsockopt(socket.SOL_SOCKET, _FORCE_BUFFER, 64 << 20)
        line.setsockopt(socket.SOL_SOCKET, _TIMES, 1)
        line.bind((INTERFACE, ETH_ALL))
        line.settimeout(0.1)
        return line

    def run(self) -> None:
        readers = [threading.Thread(target=self._read, args=(line,)) for line in self._sockets]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()

    def _read(self, line: socket.socket) -> None:
        while True:
            try:
                packet, extra, _, where = line.recvmsg(128, 64)
            except TimeoutError:
                if self._ending.is_set():
                    return
                continue
            if where[2] != socket.PACKET_OUTGOING:
                self._note(packet, extra)

    def _note(self, packet: bytes, extra: list[tuple[int, int, bytes]]) -> None:
        six = packet[0] >> 4 == 6
        protocol, header = (packet[6], 40) if six else (packet[9], 4 * (packet[0] & 15))
        if protocol not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
            return
        (port,) = struct.unpack_from("!H", packet, header + 2)
        seconds, nanoseconds = struct.unpack("=qq", extra[0][2][:_TIMES_SIZE])
        address = packet[24:40] if six else packet[16:20]
        target = socket.inet_ntop(socket.AF_INET6 if six else socket.AF_INET, address)
        self.seen[port].append((seconds * 10**9 + nanoseconds, target, "tcp" if protocol == 6 else "udp"))

    def stop(self) -> None:
        """Everything that has arrived is noted."""
        self._ending.set()
        self.join()
        for line in self._sockets:
            _, dropped = struct.unpack("=II", line.getsockopt(263, 6, 8))  # SOL_PACKET, PACKET_STATISTICS
            self.lost += dropped
            line.close()


class Tables:
    """What programs read, looked at from outside."""

    def __init__(self, pins: Path) -> None:
        self._maps = {name: PinnedMap(pins / "live" / name) for name in ("state", "endpoints_0", "endpoints_1")}
        self._workloads = PinnedMap(pins / "live/workloads")

    def has_endpoint(self, address: str, ifindex: int) -> bool:
        """In force at this interface."""
        state = row("idm_state").unpack_from(self._maps["state"].lookup(bytes(4)) or b"")
        found = self._maps[f"endpoints_{state['generation'] & 1}"].lookup(packed(address))
        if found is None:
            return False
        known = row("idm_endpoint_row").unpack_from(found)
        return bool(known["ifindex"] == ifindex and known["policy"] != NO_INDEX)

    def has_cgroup(self, number: int) -> bool:
        return self._workloads.lookup(struct.pack("=Q", number)) is not None

    def close(self) -> None:
        for one in (*self._maps.values(), self._workloads):
            one.__exit__()


@dataclass
class Start:
    """One workload, and what was seen of it."""

    number: int
    kind: str
    unknown_ns: int = 0  # the last moment at which the tables did not know it
    tries_unknown: int = 0  # what it had sent until then
    tries: int = 0
    refused: int = 0
    error: str = ""

    @property
    def port(self) -> int:
        return PORT + self.number


@dataclass
class Starter:
    """Starts workloads on a node."""

    node: NodeRun
    speaker: Path
    tables: Tables
    arrivals: Arrivals
    seed: int
    done: list[Start] = field(default_factory=list)

    def start(self, number: int) -> None:
        chance = random.Random(self.seed * 1_000_003 + number)
        kind = KINDS[number % len(KINDS)]
        start = Start(number, kind)
        self.done.append(start)
        try:
            (self._cgroup if kind.startswith("cgroup") else self._namespace)(start, chance)
        except Exception as error:
            start.error = f"{type(error).__name__}: {error}"

    # ---- workloads with a namespace ----

    def _namespace(self, start: Start, chance: random.Random) -> None:
        veth, space = f"start{start.number}", Space()
        four, six = f"10.64.{start.number >> 8}.{start.number & 255}", f"fd00:64::{start.number + 1:x}"
        node = self.node.net.node
        try:
            self._hang(veth, space, four, six)
            with node.inside():
                ifindex = socket.if_nametoindex(veth)

            def up() -> None:
                node.ip([f"link set {veth} up", f"route add {four}/32 dev {veth}", f"route add {six}/128 dev {veth}"])

            def covered() -> bool:
                with node.inside():
                    return all(attached_programs(ifindex, kind) for kind in _TCX)

            if start.kind == "last":
                up()
            self._race(
                start,
                chance,
                {"netns": space.path},
                [str(self.speaker), self._tally(start), "-", space.path],
                covered,
                up,
                lambda: self.tables.has_endpoint(four, ifindex) and self.tables.has_endpoint(six, ifindex),
            )
        finally:
            node.ip([f"link del {veth}"])
            space.close()

    def _hang(self, veth: str, space: Space, four: str, six: str) -> None:
        """As README.md says it: all but the host's side up."""
        self.node.net.node.ip(
            [
                f"link add {veth} type veth peer name {INTERFACE} netns {space.path}",
                f"address add {GATEWAY4}/32 dev {veth}",
                f"address add {GATEWAY6}/64 dev {veth} nodad",
            ]
        )
        space.sysctl(f"ipv6.conf.{INTERFACE}.accept_dad", 0)
        space.ip(
            [
                f"address add {four}/32 dev {INTERFACE}",
                f"address add {six}/128 dev {INTERFACE} nodad",
                f"link set {INTERFACE} up",
                f"route add default via {GATEWAY4} dev {INTERFACE} onlink",
                f"route add ::/0 via {GATEWAY6} dev {INTERFACE}",
            ]
        )

    # ---- workloads without ----

    def _cgroup(self, start: Start, chance: random.Random) -> None:
        place = self.node.base / f"start{start.number}"
        child = place / "child"
        child.mkdir(parents=True)
        number = place.stat().st_ino
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._race(
                start,
                chance,
                {"cgroup": str(place)},
                [str(self.speaker), self._tally(start), str(child / "cgroup.procs"), self.node.net.node.path],
                lambda: all(attached_programs(descriptor, kind) for kind in _CGROUP),
                lambda: None,
                lambda: self.tables.has_cgroup(number),
            )
        finally:
            os.close(descriptor)
            child.rmdir()
            place.rmdir()

    # ---- both ----

    def _tally(self, start: Start) -> str:
        path = self.node.folder / f"tally{start.number}"
        path.write_bytes(bytes(16))
        return str(path)

    def _race(
        self,
        start: Start,
        chance: random.Random,
        where: dict[str, str],
        words: list[str],
        covered: Callable[[], bool],
        up: Callable[[], None],
        known: Callable[[], bool],
    ) -> None:
        """
        Attach it, and have it speak at the moment that its kind names.

        held: at any moment; the host's side of its veth goes up when it is attached. early: that goes up as soon as the
        programs are on it. last: it is started when it is attached.
        """
        with open(words[1], "r+b") as file, mmap.mmap(file.fileno(), 16) as tally:
            process: list[subprocess.Popen[bytes]] = []

            def speak() -> None:
                targets = [str(start.port), *chance.sample(ALLOWED + DENIED, 8)]
                process.append(subprocess.Popen([*words, *targets], stdin=subprocess.PIPE))

            def tries() -> int:
                return int(struct.unpack_from("=Q", tally)[0])

            asking = ThreadPoolExecutor(1)
            try:
                begun = time.monotonic()
                speaks_at = begun + chance.uniform(-0.02, 0.06)
                if start.kind == "held" and speaks_at <= begun:
                    speak()
                    time.sleep(begun - speaks_at)
                labels = {"app": "started"}
                answer = asking.submit(self.node.admin, "attach", f"start{start.number}", labels=labels, **where)
                is_up = start.kind != "early"
                while not answer.done():
                    now, said = time.time_ns(), tries()
                    if not known():
                        start.unknown_ns, start.tries_unknown = now, said
                    if start.kind == "held" and not process and time.monotonic() >= speaks_at:
                        speak()
                    if not is_up and covered():
                        speak()
                        up()
                        is_up = True
                    if start.kind == "cgroup early" and not process and covered():
                        speak()
                    time.sleep(0.0002)
                answer.result()
                if start.kind == "held":
                    up()
                if not process:
                    speak()
                wanted = {(target, protocol) for target in ALLOWED for protocol in ("tcp", "udp")}
                eventually(
                    lambda: wanted <= {one[1:] for one in list(self.arrivals.seen[start.port])},
                    20,
                    f"what is allowed never came: only {Counter(one[1:] for one in self.arrivals.seen[start.port])}",
                )
            finally:
                asking.shutdown()
                for one in process:
                    one.communicate(timeout=10)
                start.tries, start.refused = struct.unpack("=QQ", tally[:16])
            if start.number % _LEFT:
                self.node.admin("detach", f"start{start.number}")
