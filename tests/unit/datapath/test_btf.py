# SPDX-License-Identifier: Apache-2.0
"""Type information is read as the kernel's documentation has it, and what is cut off is refused."""

from __future__ import annotations

import struct

import pytest

from ext_authz.datapath.btf import Btf, BtfError

INT, PTR, ARRAY, STRUCT, VAR, DATASEC = 1, 2, 3, 4, 14, 15


class Writer:
    """BTF written by hand: types number from 1."""

    def __init__(self) -> None:
        self.texts, self.types = bytearray(1), bytearray()

    def text(self, text: str) -> int:
        at = len(self.texts)
        self.texts += text.encode() + b"\0"
        return at

    def type(self, name: str, kind: int, size: int, tail: bytes = b"", count: int = 0) -> None:
        self.types += struct.pack("<III", self.text(name), kind << 24 | count, size) + tail

    def member(self, name: str, kind: int, offset: int) -> bytes:
        return struct.pack("<III", self.text(name), kind, offset * 8)

    def bytes(self) -> bytes:
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.texts))
        return head + bytes(self.types) + bytes(self.texts)


@pytest.fixture
def written() -> Writer:
    made = Writer()
    made.type("unsigned int", INT, 4, bytes(4))  # 1
    made.type("pair", STRUCT, 8, made.member("left", 1, 0) + made.member("right", 1, 4), 2)  # 2
    made.type("", ARRAY, 0, struct.pack("<III", 1, 1, 27))  # 3
    made.type("", PTR, 3)  # 4
    made.type("", STRUCT, 8, made.member("type", 4, 0), 1)  # 5
    made.type("events", VAR, 5, bytes(4))  # 6
    made.type(".maps", DATASEC, 8, struct.pack("<III", 6, 0, 8), 1)  # 7
    return made


def test_structs_have_sizes_and_offsets(written: Writer) -> None:
    found = Btf(written.bytes()).structs()
    assert found.keys() == {"pair"}
    assert (found["pair"].size, dict(found["pair"].offsets)) == (8, {"left": 0, "right": 4})


def test_maps_have_the_kernels_type(written: Writer) -> None:
    assert Btf(written.bytes()).maps() == {"events": 27}


def test_a_map_without_type_is_refused() -> None:
    made = Writer()
    made.type("", STRUCT, 0)
    made.type("odd", VAR, 1, bytes(4))
    made.type(".maps", DATASEC, 8, struct.pack("<III", 2, 0, 8), 1)
    with pytest.raises(BtfError, match="no type"):
        Btf(made.bytes()).maps()


def test_every_cut_is_refused_or_read_without_a_crash(written: Writer) -> None:
    whole = written.bytes()
    for size in range(len(whole)):
        try:
            Btf(whole[:size]).maps()
        except BtfError:
            continue


def test_other_bytes_are_no_btf() -> None:
    with pytest.raises(BtfError, match="not BTF"):
        Btf(bytes(64))
