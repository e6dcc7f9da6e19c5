# SPDX-License-Identifier: Apache-2.0
"""
The packet programs on a desk: tables written by hand, one packet in, one answer out (BPF_PROG_TEST_RUN).

No loader fills these tables: a test says row by row what the programs find, also what no loader would write.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ext_authz.datapath._datapath import ffi, lib

from ext_authz.datapath.addresses import packed, unpacked
from ext_authz.datapath.layout import COUNTERS, LAYOUT, NO_INDEX, row
from ext_authz.play.network import Space

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = ROOT / "build/bpf"
INGRESS, EGRESS = 0, 1
FORWARDED, DROPPED, AUDIT, REDIRECTED = 1, 2, 4, 5
PASS, SHOT, REDIRECT = 0xFFFFFFFF, 2, 7  # TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
USED, OPEN, ISOLATED = 1, 2, 4
TO_PROXY, FROM_PROXY = 0x200, 0xA00
PEER_REDIRECT, EVENTS_ALLOWED = 2, 1
WORLD4, WORLD6, HOST = 9, 10, 1
_TCX_INGRESS, _TCX_EGRESS = 46, 47
_TRANSPARENT = {False: (socket.SOL_IP, 19), True: (socket.IPPROTO_IPV6, 75)}
_REPAIR = 19  # TCP_REPAIR: connect() says nothing on the wire
TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
SMALL = dict.fromkeys(("tokens", "grants", "affinity", "translations", "services", "backends", "workloads"), 256)
SMALL |= {"attachments": 64, "locals": 64, "tokens_outside": 256, "grants_outside": 256}
for _slot in "01":
    SMALL |= {f"endpoints_{_slot}": 1024, f"prefixes_{_slot}": 1024, f"sides_{_slot}": 256, f"peers_{_slot}": 1024}


@dataclass(frozen=True)
class Span:
    """Ports of one protocol (0: all that the list does not name) and their verdict."""

    protocol: int
    first: int = 0
    last: int = 65535
    verdict: int = FORWARDED
    drop: int = 0
    l7: int = 0
    entry: int = NO_INDEX
    auth: int = 0
    match: int = 0

    def pack(self) -> bytes:
        return row("idm_span_row").pack(
            first_port=self.first,
            last_port=self.last,
            protocol=self.protocol,
            verdict=self.verdict,
            drop_reason=self.drop,
            l7=self.l7,
            entry=self.entry,
            auth=self.auth,
            match_type=self.match,
        )


ALL = Span(0)


@dataclass(frozen=True)
class Side:
    """One direction of a policy: lists by peer identity, one for any other peer."""

    peers: Mapping[int, Iterable[Span]] = field(default_factory=dict)
    any: Iterable[Span] = ()
    flags: int = USED
    miss_verdict: int = DROPPED
    miss_drop: int = 133


@dataclass(frozen=True)
class Endpoint:
    identity: int
    policy: int = NO_INDEX
    ifindex: int = 0
    index: int = NO_INDEX
    local: bool = False


@dataclass(frozen=True)
class Tables:
    """All tables of one revision."""

    endpoints: Mapping[str, Endpoint]
    sides: Mapping[tuple[int, int], Side] = field(default_factory=dict)
    prefixes: Mapping[str, int] = field(default_factory=dict)
    closed: bool = False


@dataclass(frozen=True)
class Answer:
    action: int
    mark: int
    packet: bytes
    events: list[dict[str, Any]]

    @property
    def passed(self) -> bool:
        return self.action != SHOT and self.mark != TO_PROXY and not self.refused

    @property
    def refused(self) -> bool:
        """Dropped for want of Envoy or of a backend, and a reset goes back in its place."""
        return self.action == REDIRECT and any(event["drop_reason"] in (158, 180) for event in self.events)

    @property
    def steered(self) -> bool:
        return self.action == PASS and self.mark == TO_PROXY

    @property
    def drop(self) -> int:
        """The reason, 0 if the packet was not dropped."""
        if self.action != SHOT and not self.refused:
            return 0
        assert len(self.events) == 1, f"a dropped packet has one event: {self.events}"
        return int(self.events[0]["drop_reason"])


class Desk:
    """Both programs over one set of maps, in a network namespace whose interfaces are named by the test."""

    def __init__(
        self,
        pins: Path,
        interfaces: Iterable[str] | Mapping[str, int],
        connections: int = 4096,
        sizes: Mapping[str, int] | None = None,
        space: Space | None = None,
    ) -> None:
        self._own_space = space is None
        self._links: list[int] = []
        self.space = space or Space()
        self._loader = lib.idm_datapath_create(str(pins).encode())
        self._written: dict[str, set[bytes]] = {}
        self._listeners: list[socket.socket] = []
        self.generation = 0
        try:
            self.ifindex = dict(interfaces) if isinstance(interfaces, Mapping) else self._interfaces(list(interfaces))
            self._load({**SMALL, "connections": connections, "fragments": 256, "spans": 8192, **(sizes or {})})
        except BaseException:
            self.close()
            raise

    def _interfaces(self, names: list[str]) -> dict[str, int]:
        self.space.ip(f"link add name {name} type veth peer name {name}-in" for name in names)
        listed = self.space.run(["ip", "-o", "link"]).splitlines()
        numbers = {line.split()[1].rstrip(":").split("@")[0]: int(line.split(":")[0]) for line in listed}
        return {name: numbers[name] for name in names}

    def _load(self, sizes: Mapping[str, int]) -> None:
        for name, count in sizes.items():
            self._checked(lib.idm_datapath_size(self._loader, name.encode(), count), name)
        for name in ("from_workload", "to_workload"):
            self.load(OBJECTS / f"{name}.bpf.o")

    def load(self, path: Path) -> None:
        """One more object over the same maps."""
        error = ffi.new("struct idm_datapath_error *")
        log = ffi.new("char[]", 1 << 20)
        if lib.idm_datapath_load(self._loader, str(path).encode(), log, len(log), 0, error):
            said = ffi.string(log).decode(errors="replace")
            raise OSError(f"{path.name}: {ffi.string(error.message).decode()}\n{said[-4000:]}")

    def program(self, name: str) -> int:
        """The program's descriptor."""
        return self._checked(lib.idm_datapath_program(self._loader, name.encode()), name)

    @staticmethod
    def _checked(value: int, what: str) -> int:
        if value < 0:
            raise OSError(-value, f"{what}: {-value}")
        return value

    def link(self, interface: str) -> None:
        """Both programs at an interface of the namespace, for real packets."""
        for name, kind in (("from_workload", _TCX_INGRESS), ("to_workload", _TCX_EGRESS)):
            link = lib.idm_datapath_link(self.program(name), self.ifindex[interface], kind, self.space.descriptor)
            self._links.append(self._checked(link, f"{name} at {interface}"))

    def close(self) -> None:
        for link in self._links:
            os.close(link)
        self._listen(False)
        lib.idm_datapath_destroy(self._loader)
        if self._own_space:
            self.space.close()

    # ---- maps ----

    def update(self, name: str, key: bytes, value: bytes) -> None:
        self._checked(lib.idm_datapath_update(self._loader, name.encode(), key, value), f"update of {name}")
        self._written.setdefault(name, set()).add(key)

    def clear(self, name: str) -> None:
        """Delete what was written by hand."""
        for key in self._written.pop(name, set()):
            lib.idm_datapath_delete(self._loader, name.encode(), key)

    def publish(self, tables: Tables) -> int:
        """Make these tables the live revision; its generation."""
        generation = self.generation + 1
        slot = generation & 1
        for name in ("endpoints", "prefixes", "peers", "sides"):
            if name != "sides":
                self.clear(f"{name}_{slot}")
        for number in range(256):
            self.update(f"sides_{slot}", struct.pack("=I", number), bytes(row("idm_side_row").size))
        for address, endpoint in tables.endpoints.items():
            self._endpoint(slot, address, endpoint)
        for prefix, identity in tables.prefixes.items():
            self._prefix(slot, prefix, identity)
        self._first_span = slot * 4096
        for (policy, direction), side in tables.sides.items():
            self._side(slot, policy * 2 + direction, side)
        self.state(generation, closed=tables.closed)
        return generation

    def _endpoint(self, slot: int, address: str, endpoint: Endpoint) -> None:
        value = row("idm_endpoint_row").pack(
            identity=endpoint.identity,
            endpoint=endpoint.index,
            policy=endpoint.policy,
            flags=int(endpoint.local),
            ifindex=endpoint.ifindex,
        )
        self.update(f"endpoints_{slot}", packed(address), value)

    def _prefix(self, slot: int, prefix: str, identity: int) -> None:
        network = ipaddress.ip_network(prefix)
        bits = network.prefixlen + (96 if network.version == 4 else 0)
        key = row("idm_prefix_key").pack(bits=bits, address=[packed(str(network.network_address))])
        self.update(f"prefixes_{slot}", key, row("idm_prefix_row").pack(identity=identity))

    def _spans(self, spans: Iterable[Span]) -> tuple[int, int]:
        first = self._first_span
        for span in spans:
            self.update("spans", struct.pack("=I", self._first_span), span.pack())
            self._first_span += 1
        return first, self._first_span - first

    def _side(self, slot: int, number: int, side: Side) -> None:
        for identity, spans in side.peers.items():
            key = row("idm_peer_key").pack(side=number, identity=identity)
            self.update(f"peers_{slot}", key, struct.pack("=II", *self._spans(spans)))
        value = row("idm_side_row").pack(
            flags=side.flags,
            miss_verdict=side.miss_verdict,
            miss_drop=side.miss_drop,
            any=self._spans(side.any),
        )
        self.update(f"sides_{slot}", struct.pack("=I", number), value)

    def state(self, generation: int, closed: bool = False, layout: int = LAYOUT) -> None:
        self.generation = generation
        value = row("idm_state").pack(
            generation=generation,
            layout=layout,
            domain=1,
            revision=[1000 + generation - (generation & 1), 1001 + generation - 1 + (generation & 1)],
            world4=[WORLD4, WORLD4],
            world6=[WORLD6, WORLD6],
            closed=[int(closed), int(closed)],
        )
        self.update("state", struct.pack("=I", 0), value)

    def config(self, proxy_port: int = 0, flags: int = 0) -> None:
        value = row("idm_config").pack(
            envoy_cgroup=0, proxy_port=proxy_port, proxy_port6=0, flags=flags, host_identity=HOST
        )
        self.update("config", struct.pack("=I", 0), value)
        self._listen(bool(proxy_port))

    def _listen(self, wanted: bool) -> None:
        """Sockets in the place of Envoy's listeners."""
        while self._listeners:
            self._listeners.pop().close()
        for slot, family in enumerate((socket.AF_INET, socket.AF_INET6) if wanted else ()):
            line = self.space.socket(family)
            self._listeners.append(line)
            line.listen()
            self.update("listeners", struct.pack("=I", slot), struct.pack("=Q", line.fileno()))

    def attach(self, interface: str, mac: bytes = bytes(6)) -> None:
        value = row("idm_attachment").pack(mac=mac, peer_ifindex=1, flags=0)
        self.update("attachments", struct.pack("=I", self.ifindex[interface]), value)

    def local(self, address: str) -> None:
        """The host's own address."""
        self.update("locals", packed(address), struct.pack("=I", 1))

    def connections(self) -> dict[bytes, dict[str, Any]]:
        """Rows by key."""
        keys, values = row("idm_connection_key").size, row("idm_connection").size
        key_room, value_room = ffi.new("char[]", keys * 4096), ffi.new("char[]", values * 4096)
        cursor = ffi.new("char[]", keys + 8)
        found: dict[bytes, dict[str, Any]] = {}
        first = 1
        while (
            got := lib.idm_datapath_read(self._loader, b"connections", first, cursor, key_room, value_room, 4096)
        ) >= 0:
            first = 0
            for i in range(got):
                key = bytes(ffi.buffer(key_room, keys * got)[i * keys : (i + 1) * keys])
                found[key] = row("idm_connection").unpack_from(ffi.buffer(value_room, values * got), i * values)
        return found

    def connection(self) -> dict[str, Any]:
        """The only row."""
        (only,) = self.connections().values()
        return only

    def rewrite(self, **changes: Any) -> None:
        """Change fields of the only connection."""
        ((key, value),) = self.connections().items()
        self.update("connections", key, row("idm_connection").pack(**{**value, **changes}))

    def forget(self) -> None:
        """Empty the connections, as a full LRU would one by one."""
        for key in self.connections():
            self._checked(lib.idm_datapath_delete(self._loader, b"connections", key), "delete")

    def forget_all(self) -> None:
        """Empty a large table of connections."""
        keys, values = row("idm_connection_key").size, row("idm_connection").size
        count = 65536
        key_room, value_room = ffi.new("char[]", keys * count), ffi.new("char[]", values * count)
        while True:
            cursor = ffi.new("char[]", keys + 8)
            got = lib.idm_datapath_read(self._loader, b"connections", 1, cursor, key_room, value_room, count)
            if got <= 0:
                return
            for i in range(got):
                lib.idm_datapath_delete(self._loader, b"connections", key_room + i * keys)

    @contextlib.contextmanager
    def taken(self, local: tuple[str, int], remote: tuple[str, int]) -> Iterator[socket.socket]:
        """A connection that a socket of this host has, as Envoy's with a client: from an address that is another's."""
        six = ":" in local[0]
        way = f"{'::' if six else '0.0.0.0'}/0 dev lo"
        self.space.ip(["link set lo up", f"route add {way}"])
        try:
            with self.space.socket(socket.AF_INET6 if six else socket.AF_INET) as line:
                line.setsockopt(*_TRANSPARENT[six], 1)
                line.setsockopt(socket.IPPROTO_TCP, _REPAIR, 1)
                line.bind(local)
                line.connect(remote)
                yield line
        finally:
            self.space.ip([f"route del {way}"])

    # ---- packets ----

    def run(self, program: str, packet: bytes, interface: str, came: str = "", mark: int = 0) -> Answer:
        """One packet through a program. came: the interface it came in by; empty: a process of this host sent it."""
        context = ffi.new("char[192]")
        raw = ffi.buffer(context)
        # struct __sk_buff: mark at 8, ingress_ifindex at 36, ifindex at 40.
        struct.pack_into("=I", raw, 8, mark)
        struct.pack_into("=II", raw, 36, self.ifindex.get(came, 0), self.ifindex[interface])
        out = ffi.new("char[]", len(packet) + 256)
        run = ffi.new("struct idm_datapath_run *", {"repeat": 1, "size_out": len(packet) + 256, "context_size": 192})
        descriptor = self.program(program)
        done = lib.idm_datapath_run(descriptor, packet, len(packet), out, context, run, self.space.descriptor)
        self._checked(done, program)
        mark = struct.unpack_from("=I", raw, 8)[0]
        return Answer(run.answer, mark, bytes(ffi.buffer(out, run.size_out)), self.events())

    def repeat(self, program: str, packet: bytes, interface: str, times: int) -> int:
        """The same packet again and again; mean nanoseconds."""
        context = ffi.new("char[192]")
        index = self.ifindex[interface]
        struct.pack_into("=II", ffi.buffer(context), 36, index, index)
        run = ffi.new("struct idm_datapath_run *", {"repeat": times, "context_size": 192})
        descriptor = self.program(program)
        done = lib.idm_datapath_run(descriptor, packet, len(packet), ffi.NULL, context, run, self.space.descriptor)
        self._checked(done, program)
        return int(run.duration_ns)

    def sends(self, interface: str, packet: bytes, mark: int = 0) -> Answer:
        """The workload at that interface sends a packet."""
        return self.run("from_workload", packet, interface, interface, mark)

    def receives(self, interface: str, packet: bytes, came: str = "", mark: int = 0) -> Answer:
        """The host sends a packet to the workload at that interface."""
        return self.run("to_workload", packet, interface, came, mark)

    def events(self) -> list[dict[str, Any]]:
        size = row("idm_event").size
        room = ffi.new("char[]", size * 64)
        got = self._checked(lib.idm_datapath_events(self._loader, room, size * 64, 0), "events")
        found = [row("idm_event").unpack_from(ffi.buffer(room, got), at) for at in range(0, got, size)]
        for event in found:
            event["source"] = unpacked(event["source_bytes"])
            event["destination"] = unpacked(event["destination_bytes"])
        return found

    def counters(self) -> dict[tuple[int, int], int]:
        """Packets by reason and direction, what is not zero."""
        size = row("idm_counter").size
        room, losses = ffi.new("char[]", size * COUNTERS), ffi.new("uint64_t *")
        self._checked(lib.idm_datapath_counters(self._loader, room, size * COUNTERS, losses), "counters")
        packets = [struct.unpack_from("=Q", ffi.buffer(room), i * size)[0] for i in range(COUNTERS)]
        self.losses = int(losses[0])
        return {(i >> 1, i & 1): count for i, count in enumerate(packets) if count}
