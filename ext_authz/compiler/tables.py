# SPDX-License-Identifier: Apache-2.0
"""
Packs table 1 (identities, endpoints, addresses) and table 2 (selectors and whom they select).

Rows are remembered by the object they were packed from, so that a new endpoint costs its own rows and a copy.

Source: native/include/idmesh/snapshot.h
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv6Address
from itertools import compress, count
from operator import is_not
from typing import Any, TypeVar

from ext_authz.compiler.assemble import Table, pack_table
from ext_authz.compiler.blocks import Blocks, Section
from ext_authz.compiler.entries import PROTOCOLS
from ext_authz.compiler.pools import Pool, Strings, numbers, packer
from ext_authz.compiler.resolved import Address, EndpointRow, HostRow, HostRows, IdentityRow, RangeRow, Resolved
from ext_authz.compiler.runs import Texts
from ext_authz.compiler.slots import Slots
from ext_authz.engine import layout
from ext_authz.model.types import NamedPort

_meta = packer("idm_identities_meta", "world4", "world6", "host_probe_max")
_identity = packer("idm_identity", "id", "first_label", "label_count", "first_named", "named_count", "flags")
_string = packer("idm_string", "offset", "size")
_named_port = packer("idm_named_port", "name_offset", "name_size", "port", "protocol")
_endpoint = packer("idm_endpoint", "identity", "flags", "name_offset", "name_size", "first_named", "named_count")
_host = packer("idm_host", "address", "identity", "endpoint", "family")
_range4 = packer("idm_range4", "first", "identity")
_range6 = packer("idm_range6", "first", "identity")
_selector = packer("idm_selector", "text_offset", "text_size")
_selected = packer("idm_selected", "identity", "first", "count")


# Unused bytes that are never worth a fresh start.
_SLACK = 1 << 18
# Rows that are compared at once, which costs a tenth of looking at each.
_STEP = 256

Row = TypeVar("Row")
Packed = TypeVar("Packed")


class _Remembered:
    """What was made of rows, by the row object; rows not seen in the last round are forgotten."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Any]] = {}

    def make(self, rows: Iterable[Row], make: Callable[[Row], Packed]) -> list[Packed]:
        """What `make` gives for each row."""
        before, now = self._known, {}
        made = []
        for row in rows:
            known = before.get(id(row)) or (row, make(row))
            now[id(row)] = known
            made.append(known[1])
        self._known = now
        return made


class _Column:
    """Packed rows of one size that keep their places: only rows that are other objects are packed again."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: Sequence[Any] = ()
        self._blocks = Blocks()
        self.data = bytearray()

    def set(
        self,
        rows: Sequence[Row],
        make: Callable[[Row], bytes],
        forget: Callable[[Row], object] = lambda row: None,
    ) -> None:
        """
        Make these the rows.

        Args:
            forget: Told of what was packed for a place that is gone, or is another row's.
        """
        size, data, before = self._size, self.data, self._rows
        gone: list[Row] = list(before[len(rows) :])
        for index in _others(rows, before):
            data[index * size : index * size + size] = make(rows[index])
            self._blocks.touch(index * size, index * size + size)
            gone.append(before[index])
        del data[len(rows) * size :]
        data += b"".join(make(row) for row in rows[len(before) :])
        self._rows = rows
        for row in gone:
            forget(row)

    def digests(self) -> bytes:
        return self._blocks.digests(self.data)


def _others(rows: Sequence[Row], before: Sequence[Row]) -> Iterator[int]:
    """Where these rows are other objects. Equal ones may be passed over: they are packed to the same."""
    for start in range(0, min(len(rows), len(before)), _STEP):
        now, then = rows[start : start + _STEP], before[start : start + _STEP]
        if now != then:
            yield from compress(count(start), map(is_not, now, then))


class _Hosts:
    """The table of exact addresses, changed by difference."""

    def __init__(self) -> None:
        self._rows: dict[int, HostRow] = {}  # by id(); the row is kept, so that the id stays its own
        self._number = 0
        self._hashed: dict[Address, tuple[bytes, int, bytes, int]] = {}
        self.slots = Slots(layout.record("idm_host").size)

    def set(self, rows: Sequence[HostRow]) -> Slots:
        """Make these the rows."""
        if isinstance(rows, HostRows) and rows.base and rows.base == self._number:
            gone, new = rows.gone, rows.new
            for row in gone:
                del self._rows[id(row)]
            self._rows.update((id(row), row) for row in new)
        else:
            before, self._rows = self._rows, {id(row): row for row in rows}
            gone = [row for number, row in before.items() if number not in self._rows]
            new = [row for number, row in self._rows.items() if number not in before]
        self._number = rows.number if isinstance(rows, HostRows) else 0
        for row in gone:
            self.slots.remove(self._hash(row.address)[0])
        self.slots.reserve(len(self._rows))
        for row in new:
            key, hash64, packed, family = self._hash(row.address)
            endpoint = layout.NONE if row.endpoint is None else row.endpoint
            self.slots.put(key, hash64, _host(packed, row.identity, endpoint, family))
        # A thousand addresses may come and go in a second; to keep many more than there are would only cost memory.
        if len(self._hashed) > 1.1 * len(self._rows) + 1000:
            self._hashed.clear()
        return self.slots

    def _hash(self, address: Address) -> tuple[bytes, int, bytes, int]:
        known = self._hashed.get(address)
        if known is None:
            known = self._hashed[address] = _hashed(address)
        return known


class IdentityPools:
    """Everything table 1 is made of, kept between compilations."""

    def __init__(self) -> None:
        self._strings = Texts()
        self._labels = Pool(layout.record("idm_string").size)
        self._named = Pool(layout.record("idm_named_port").size)
        self._identities = _Remembered()
        self._endpoints = _Column(layout.record("idm_endpoint").size)
        self._hosts = _Hosts()
        self._last: tuple[object, ...] = ()
        self._packed = b""  # the identities
        self._ranges: dict[int, tuple[Sequence[RangeRow], bytes]] = {}  # by the size of an address
        self._fresh_size = 0

    @property
    def is_bloated(self) -> bool:
        """Most of what is held may be of rows long gone: better begin anew."""
        size, free = self._size(), self._strings.free_size
        return self._fresh_size > 0 and (size > 2 * self._fresh_size + _SLACK or free > 2 * size + _SLACK)

    def _size(self) -> int:
        return self._strings.used_size + len(self._labels.data) + len(self._named.data)

    def table(self, resolved: Resolved, previous: Table | None, revision: int) -> Table:
        """Table 1."""
        rows = (resolved.identities, resolved.endpoints, resolved.hosts, resolved.ranges4, resolved.ranges6)
        now = (*rows, resolved.world4, resolved.world6)
        if previous is not None and _are_same(now, self._last):
            return previous
        slots = self._hosts.set(resolved.hosts)
        if not self._last or resolved.identities is not self._last[0]:
            self._packed = b"".join(self._identities.make(resolved.identities, self._pack_identity))
        self._endpoints.set(resolved.endpoints, self._pack_endpoint, self._forget_endpoint)
        sections: list[bytes | Section] = [
            _meta(resolved.world4, resolved.world6, slots.longest),
            self._packed,
            self._labels,
            self._named,
            self._endpoints,
            slots,
            self._range_bytes(resolved.ranges4, 4),
            self._range_bytes(resolved.ranges6, 16),
            self._strings,
        ]
        self._last = now
        self._fresh_size = self._fresh_size or self._size()
        return pack_table(layout.TableKind.IDENTITIES, sections, previous, revision)

    def _range_bytes(self, rows: Sequence[RangeRow], size: int) -> bytes:
        known = self._ranges.get(size)
        if known is None or known[0] is not rows:
            known = self._ranges[size] = (rows, _pack_ranges(rows, size))
        return known[1]

    def _pack_identity(self, row: IdentityRow) -> bytes:
        labels = self._labels.intern(b"".join(_string(*self._strings(label)) for label in row.labels))
        ports = self._port_list(row.named_ports)
        return _identity(row.number, labels, len(row.labels), *ports, layout.IDENTITY_WORLD * row.world)

    def _pack_endpoint(self, row: EndpointRow) -> bytes:
        flags = layout.ENDPOINT_LOCAL * row.local | layout.ENDPOINT_AUDIT * row.audit
        return _endpoint(row.identity, flags, *self._strings(row.name), *self._port_list(row.named_ports))

    def _forget_endpoint(self, row: EndpointRow) -> None:
        # Of all that is written only names come and go by the hundred a second.
        self._strings.give_back(row.name)

    def _port_list(self, ports: Sequence[NamedPort]) -> tuple[int, int]:
        packed = [_named_port(*self._strings(port.name), port.port, PROTOCOLS[port.protocol]) for port in ports]
        return self._named.intern(b"".join(packed)), len(packed)


class SelectorPools:
    """Everything table 2 is made of."""

    def __init__(self) -> None:
        self._last: tuple[object, ...] = ()
        self._lists = Pool(4)
        self._fresh_size = 0
        self._rows: dict[int, tuple[tuple[int, ...], bytes]] = {}
        self._named: tuple[object, bytes, Strings] = (None, b"", Strings())

    def table(self, resolved: Resolved, previous: Table | None, revision: int) -> Table:
        """Table 2. A free number has an empty text and selects nobody."""
        now = (resolved.selectors, resolved.membership)
        if previous is not None and _are_same(now, self._last):
            return previous
        if self._named[0] != resolved.selectors:
            strings = Strings()
            packed = b"".join(_selector(*strings(s.text if s is not None else "")) for s in resolved.selectors)
            self._named = (resolved.selectors, packed, strings)
        if len(self._lists.data) > 2 * self._fresh_size + _SLACK:
            self._lists, self._rows, self._fresh_size = Pool(4), {}, 0
        rows = self._pack_rows(resolved.membership)
        self._fresh_size = self._fresh_size or len(self._lists.data)
        self._last = now
        _, selectors, texts = self._named
        return pack_table(layout.TableKind.SELECTORS, [selectors, rows, self._lists, texts], previous, revision)

    def _pack_rows(self, membership: Mapping[int, tuple[int, ...]]) -> bytes:
        before, rows, packed = self._rows, {}, []
        for identity in sorted(membership):
            chosen = membership[identity]
            known = before.get(identity)
            if known is None or known[0] is not chosen:
                known = (chosen, _selected(identity, self._lists.intern(numbers(chosen)), len(chosen)))
            rows[identity] = known
            packed.append(known[1])
        self._rows = rows
        return b"".join(packed)


def _are_same(now: Sequence[object], last: Sequence[object]) -> bool:
    return len(now) == len(last) and all(a is b or a == b for a, b in zip(now, last, strict=True))


def _hashed(address: Address) -> tuple[bytes, int, bytes, int]:
    """Its name in the table, hash, bytes and family. IPv4-mapped IPv6 addresses count as IPv4."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    packed = (mapped or address).packed
    family, filled = (4 if len(packed) == 4 else 6), packed.ljust(16, b"\0")
    return packed, layout.hash64(family, filled), filled, family


def _pack_ranges(rows: Iterable[RangeRow], size: int) -> bytes:
    pack = _range4 if size == 4 else _range6
    return b"".join(pack(row.first.to_bytes(size, "big"), row.identity) for row in rows)
