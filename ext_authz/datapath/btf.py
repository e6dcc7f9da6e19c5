# SPDX-License-Identifier: Apache-2.0
"""
Type information of a BPF object (.BTF), as far as layouts and maps need it.

Source: Linux, Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _VAR, _DATASEC, _ENUM64 = 2, 3, 4, 5, 6, 14, 15, 19
# Bytes behind a type of this kind: fixed, and per item.
_TAIL = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0)}
_TAIL[_ENUM64] = (0, 12)


class BtfError(ValueError):
    """Not BTF, or cut off."""


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    type: int
    offset: int  # bytes


@dataclass(frozen=True, slots=True)
class Type:
    name: str
    kind: int
    size: int  # or the type that this one refers to
    members: tuple[Member, ...] = ()
    count: int = 0  # array: items


@dataclass(frozen=True, slots=True)
class Struct:
    size: int
    offsets: Mapping[str, int]


class Btf:
    """The types of one object, by number."""

    def __init__(self, data: bytes) -> None:
        try:
            self._read(data)
        except BtfError:
            raise
        except (struct.error, ValueError) as error:
            raise BtfError(f"damaged BTF: {error}") from None

    def _read(self, data: bytes) -> None:
        magic, version, _, header, types_at, types_size, texts_at, texts_size = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != 1:
            raise BtfError("not BTF of version 1")
        self._texts = data[header + texts_at : header + texts_at + texts_size]
        self.types: list[Type] = [Type("", 0, 0)]
        at, end = header + types_at, header + types_at + types_size
        while at < end:
            at = self._read_type(data, at)

    def _text(self, offset: int) -> str:
        return self._texts[offset : self._texts.index(0, offset)].decode()

    def _read_type(self, data: bytes, at: int) -> int:
        name, info, size = _TYPE.unpack_from(data, at)
        kind, count, at = info >> 24 & 0x1F, info & 0xFFFF, at + _TYPE.size
        fixed, each = _TAIL.get(kind, (0, 0))
        members: tuple[Member, ...] = ()
        items = 0
        if kind in (_STRUCT, _UNION):
            members = tuple(self._members(data, at, count, bool(info >> 31)))
        elif kind == _DATASEC:
            fields = (struct.unpack_from("<III", data, at + index * 12) for index in range(count))
            members = tuple(Member("", number, offset) for number, offset, _ in fields)
        elif kind == _ARRAY:
            size, _, items = struct.unpack_from("<III", data, at)
        self.types.append(Type(self._text(name), kind, size, members, items))
        return at + fixed + each * count

    def _members(self, data: bytes, at: int, count: int, has_bits: bool) -> Iterator[Member]:
        for index in range(count):
            name, kind, offset = struct.unpack_from("<III", data, at + index * 12)
            yield Member(self._text(name), kind, (offset & 0xFFFFFF if has_bits else offset) // 8)

    def structs(self) -> dict[str, Struct]:
        """Named structs: size and offset of each member in bytes."""
        return {
            one.name: Struct(one.size, {member.name: member.offset for member in one.members})
            for one in self.types
            if one.kind == _STRUCT and one.name
        }

    def maps(self) -> dict[str, int]:
        """Maps of section .maps to the kernel's number of their type."""
        try:
            return dict(self._maps())
        except IndexError:
            raise BtfError("damaged BTF: a type that is not there") from None

    def _maps(self) -> Iterator[tuple[str, int]]:
        for section in self.types:
            if section.kind == _DATASEC and section.name == ".maps":
                for item in section.members:
                    variable = self.types[item.type]
                    yield variable.name, self._map_type(self.types[variable.size])

    def _map_type(self, definition: Type) -> int:
        # __uint(type, N) is a pointer to an array of N.
        for member in definition.members:
            if member.name == "type":
                return self.types[self.types[member.type].size].count
        raise BtfError(f"map {definition.name}: no type")
