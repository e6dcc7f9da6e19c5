# SPDX-License-Identifier: Apache-2.0
"""What the loader refuses, and that it says where. Truncation and flipped bytes are in tests/native/units.c."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ext_authz.engine import Engine, SnapshotError, layout
from ext_authz.engine.layout import IdentitiesSection, PoliciesSection, SelectorsSection, TableKind
from tests.native.builder import DOMAIN, WORLDS, build

SEEDS = Path(__file__).parents[2] / "fuzz" / "corpus" / "snapshot"
HEADER, REF, SECTION = (layout.record(name) for name in ("idm_header", "idm_table_ref", "idm_section"))


class Patch:
    """A snapshot to be damaged on purpose, with checksums that fit again."""

    def __init__(self, name: str) -> None:
        self.data = bytearray(build(name))

    def ref(self, kind: int) -> dict[str, Any]:
        return REF.unpack_from(self.data, HEADER.size + (kind - 1) * REF.size)

    def head(self, kind: int, section: int) -> tuple[int, dict[str, Any]]:
        """Where a section's directory item stands in the file, and what it says."""
        at = self.ref(kind)["offset"] + section * SECTION.size
        return at, SECTION.unpack_from(self.data, at)

    def set(self, kind: int, section: int, index: int, **fields: Any) -> Patch:
        """Change fields of one item."""
        _, head = self.head(kind, section)
        packer = layout.record(layout.SECTIONS[kind][section].item)
        at = self.ref(kind)["offset"] + head["offset"] + index * packer.size
        assert index < head["count"]
        self._write(packer, at, fields)
        return self

    def set_number(self, kind: int, section: int, index: int, value: int) -> Patch:
        _, head = self.head(kind, section)
        at = self.ref(kind)["offset"] + head["offset"] + 4 * index
        assert index < head["count"]
        self.data[at : at + 4] = value.to_bytes(4, "little")
        return self

    def set_section(self, kind: int, section: int, **fields: int) -> Patch:
        self._write(SECTION, self.head(kind, section)[0], fields)
        return self

    def set_ref(self, kind: int, /, **fields: int) -> Patch:
        self._write(REF, HEADER.size + (kind - 1) * REF.size, fields)
        return self

    def set_header(self, **fields: Any) -> Patch:
        self._write(HEADER, 0, fields)
        return self

    def _write(self, packer: layout.Record, at: int, fields: dict[str, Any]) -> None:
        item = packer.unpack_from(self.data, at)
        assert fields.keys() <= item.keys()
        self.data[at : at + packer.size] = packer.pack(**(item | fields))

    def mended(self) -> bytes:
        for kind in range(1, 4):
            ref = self.ref(kind)
            table = self.data[ref["offset"] : ref["offset"] + ref["size"]]
            self.set_ref(kind, crc32=zlib.crc32(table))
        self.set_header(crc32=0)
        end = HEADER.size + 3 * REF.size
        self.set_header(crc32=zlib.crc32(self.data[:end]))
        return bytes(self.data)


@pytest.mark.parametrize("name", WORLDS)
def test_sound_snapshots_load(name: str) -> None:
    engine = Engine.open(build(name))
    assert engine.revision == 3
    assert engine.domain == DOMAIN
    assert engine.digest == HEADER.unpack_from(build(name))["digest"].hex()
    assert Engine.open(Patch(name).mended()).digest == engine.digest


@pytest.mark.parametrize("name", WORLDS)
def test_seeds_of_the_fuzzers_still_load(name: str) -> None:
    """After a change of the layout: python -m tests.fuzz.seeds"""
    assert Engine.open(SEEDS / f"{name}.snapshot").revision == 3


IDS, SELS, POLS = int(TableKind.IDENTITIES), int(TableKind.SELECTORS), int(TableKind.POLICIES)
BIG = 0x7FFFFFFF
DAMAGES: list[tuple[str, Callable[[Patch], object], str]] = [
    ("http", lambda p: p.set_header(table_count=2), "header"),
    ("http", lambda p: p.set_header(file_size=8), "truncated"),
    ("http", lambda p: p.set_ref(IDS, kind=2), "directory"),
    ("http", lambda p: p.set_ref(POLS, offset=4), "table policies: misaligned"),
    ("http", lambda p: p.set_section(IDS, IdentitiesSection.LABELS, id=7), "LABELS"),
    ("http", lambda p: p.set_section(IDS, IdentitiesSection.LABELS, item_size=4), "LABELS.*item size"),
    ("http", lambda p: p.set_section(IDS, IdentitiesSection.LABELS, count=1 << 60), "LABELS"),
    ("http", lambda p: p.set_section(IDS, IdentitiesSection.META, count=0), "META"),
    ("http", lambda p: p.set_section(IDS, IdentitiesSection.HOSTS, count=3), "HOSTS"),
    ("http", lambda p: p.set(IDS, IdentitiesSection.IDENTITIES, 1, id=1), r"IDENTITIES\[1\]: not rising"),
    ("http", lambda p: p.set(IDS, IdentitiesSection.IDENTITIES, 0, label_count=BIG), "labels leave"),
    ("http", lambda p: p.set(IDS, IdentitiesSection.LABELS, 0, size=BIG), r"LABELS\[0\]"),
    ("http", lambda p: p.set(IDS, IdentitiesSection.NAMED, 1, port=1), "do not rise"),
    ("http", lambda p: p.set(IDS, IdentitiesSection.ENDPOINTS, 0, identity=77), r"ENDPOINTS\[0\]"),
    ("http", lambda p: p.set(IDS, IdentitiesSection.META, 0, host_probe_max=0), "HOSTS.*a lookup does not find it"),
    ("http", lambda p: p.set(IDS, IdentitiesSection.META, 0, host_probe_max=BIG), "host_probe_max"),
    ("http", lambda p: p.set(IDS, IdentitiesSection.RANGES4, 0, first=b"\1\0\0\0"), "RANGES4"),
    ("http", lambda p: p.set(IDS, IdentitiesSection.RANGES4, 2, first=b"\0\0\0\0"), r"RANGES4\[2\]"),
    ("http", lambda p: p.set_number(SELS, SelectorsSection.LISTS, 0, BIG), "no such selector"),
    ("http", lambda p: p.set_number(SELS, SelectorsSection.LISTS, 1, 0), "do not rise"),
    ("http", lambda p: p.set_section(SELS, SelectorsSection.SELECTORS, count=2), "selector"),
    ("http", lambda p: p.set(POLS, PoliciesSection.SUBJECTS, 0, policy=BIG), "no such policy"),
    ("http", lambda p: p.set(POLS, PoliciesSection.POLICIES, 0, side_0_row_count=BIG), "rows leave ROWS"),
    ("http", lambda p: p.set(POLS, PoliciesSection.POLICIES, 0, side_0_any_row=0), "any_row"),
    ("http", lambda p: p.set(POLS, PoliciesSection.ROWS, 0, selector=0xFFFFFFFF), "rows do not rise"),
    ("http", lambda p: p.set(POLS, PoliciesSection.ROWS, 0, span_count=BIG), "leaves SPANS"),
    ("http", lambda p: p.set(POLS, PoliciesSection.SPANS, 0, first_port=81), "ends before it starts"),
    ("http", lambda p: p.set_number(POLS, PoliciesSection.REFS, 0, BIG), "no such entry"),
    ("http", lambda p: p.set(POLS, PoliciesSection.ENTRIES, 0, verdict=9), r"ENTRIES\[0\]: unknown verdict"),
    ("http", lambda p: p.set(POLS, PoliciesSection.ENTRIES, 0, precedence=5), "precedence"),
    ("http", lambda p: p.set(POLS, PoliciesSection.ENTRIES, 0, sni=7777), "server names"),
    ("http", lambda p: p.set(POLS, PoliciesSection.ENTRIES, 0, selector=BIG), "uses selector"),
    ("http", lambda p: p.set(POLS, PoliciesSection.ENTRIES, 0, origin_count=BIG), "origins"),
    ("http", lambda p: p.set_number(POLS, PoliciesSection.ORIGINS, 0, BIG), "no such rule"),
    ("http", lambda p: p.set(POLS, PoliciesSection.RULES, 0, path_size=BIG), r"RULES\[0\]"),
    ("http", lambda p: p.set(POLS, PoliciesSection.HTTP_SETS, 0, always_count=BIG), "HTTP_SETS"),
    ("http", lambda p: p.set(POLS, PoliciesSection.HTTP_SETS, 0, probe_max=BIG), "probe_max"),
    ("http", lambda p: p.set(POLS, PoliciesSection.HTTP_GROUPS, 0, path=7777), "no such matcher"),
    ("http", lambda p: p.set(POLS, PoliciesSection.HTTP_GROUPS, 0, rule_count=0), "rules missing"),
    ("http", lambda p: p.set(POLS, PoliciesSection.HTTP_PREDICATES, 0, mismatch=9), "unknown kind"),
    ("http", lambda p: p.set(POLS, PoliciesSection.HTTP_RULES, 0, rule=BIG), r"HTTP_RULES\[0\]"),
    ("http", lambda p: p.set(POLS, PoliciesSection.MATCHERS, 0, offset=4), "MATCHERS"),
    ("http", lambda p: p.set(POLS, PoliciesSection.MATCHERS, 0, size=8), "too short"),
    ("l7", lambda p: p.set(POLS, PoliciesSection.KAFKA_SETS, 0, rule_count=BIG), "KAFKA_SETS"),
    ("l7", lambda p: p.set(POLS, PoliciesSection.KAFKA_RULES, 0, topic_size=BIG), "KAFKA_RULES"),
    ("l7", lambda p: p.set(POLS, PoliciesSection.DNS_SETS, 0, matcher=BIG), "DNS_SETS"),
    ("tiers", lambda p: p.set(POLS, PoliciesSection.NAMED, 0, name_size=0), r"NAMED\[0\]"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES, ids=lambda item: item if isinstance(item, str) else "")
def test_damage_is_refused_and_named(name: str, damage: Callable[[Patch], object], message: str) -> None:
    patch = Patch(name)
    damage(patch)
    with pytest.raises(SnapshotError, match=message):
        Engine.open(patch.mended())


def test_another_format_is_refused_as_such() -> None:
    with pytest.raises(SnapshotError, match="format 2; this engine reads format 1"):
        Engine.open(Patch("http").set_header(format=2).mended())


def test_what_is_no_snapshot_is_refused() -> None:
    for data in (b"", b"IDMSNAP\0", bytes(4096)):
        with pytest.raises(SnapshotError, match="not a snapshot"):
            Engine.open(data)


def test_a_file_is_opened_by_path(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(build("http"))
    assert Engine.open(path).digest == Engine.open(build("http")).digest
    with pytest.raises(FileNotFoundError):
        Engine.open(tmp_path / "none")


def forge(data: bytearray, at: int, crc: int) -> None:
    """Write four bytes so that the whole has this CRC-32: walk from both ends and close the gap."""
    table = [zlib.crc32(bytes([i])) ^ zlib.crc32(b"\0") for i in range(256)]
    inverse = {value >> 24: index for index, value in enumerate(table)}
    state, wanted = zlib.crc32(data[:at]) ^ 0xFFFFFFFF, crc ^ 0xFFFFFFFF
    for byte in (*reversed(data[at + 4 :]), 0, 0, 0, 0):
        index = inverse[wanted >> 24]
        wanted = ((wanted ^ table[index]) << 8 | index ^ byte) & 0xFFFFFFFF
    data[at : at + 4] = (state ^ wanted).to_bytes(4, "little")


def test_a_table_of_equal_digest_and_checksum_but_other_bytes_is_not_shared() -> None:
    """Digests are the packer's word, and a checksum can be forged; the loader compares."""
    old = Engine.open(build("http"))
    patch = Patch("http").set(IDS, IdentitiesSection.META, 0, world4=1)
    ref, (_, head) = patch.ref(IDS), patch.head(IDS, IdentitiesSection.META)
    table = bytearray(patch.data[ref["offset"] : ref["offset"] + ref["size"]])
    forge(table, head["offset"] + 12, ref["crc32"])
    assert zlib.crc32(table) == ref["crc32"]
    patch.data[ref["offset"] : ref["offset"] + ref["size"]] = table
    new = Engine.open(patch.mended(), previous=old)
    assert bytes(new.table(IDS)) == bytes(table) != bytes(old.table(IDS))
    assert bytes(new.table(POLS)) == bytes(old.table(POLS))
