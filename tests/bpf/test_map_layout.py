# SPDX-License-Identifier: Apache-2.0
"""
One layout in four places: the C compiler's, the BTF of every object, Python's packers, and the maps in the kernel.
A struct that is declared but compared nowhere fails, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile

from ext_authz.datapath import Datapath
from ext_authz.datapath.btf import Btf
from ext_authz.datapath.layout import STRUCTS, c_layout, row
from tests.bpf.loader_objects import build
from tests.conftest import missing

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "bpf/include/idmesh/datapath.h"
# Map to the structs of its rows; None: a plain number.
MAPS: dict[str, tuple[str | None, str | None]] = {
    "state": (None, "idm_state"),
    "config": (None, "idm_config"),
    "endpoints_0": ("idm_address", "idm_endpoint_row"),
    "endpoints_1": ("idm_address", "idm_endpoint_row"),
    "prefixes_0": ("idm_prefix_key", "idm_prefix_row"),
    "prefixes_1": ("idm_prefix_key", "idm_prefix_row"),
    "sides_0": (None, "idm_side_row"),
    "sides_1": (None, "idm_side_row"),
    "peers_0": ("idm_peer_key", "idm_ports"),
    "peers_1": ("idm_peer_key", "idm_ports"),
    "spans": (None, "idm_span_row"),
    "connections": ("idm_connection_key", "idm_connection"),
    "fragments": ("idm_fragment_key", None),
    "tokens": ("idm_token_key", None),
    "grants": (None, "idm_grant"),
    "tokens_outside": ("idm_token_key", None),
    "grants_outside": (None, "idm_grant"),
    "affinity": ("idm_affinity_key", "idm_affinity"),
    "translations": ("idm_translation_key", "idm_translation"),
    "attachments": (None, "idm_attachment"),
    "locals": ("idm_address", None),
    "services": ("idm_service_key", "idm_service"),
    "backends": (None, "idm_backend"),
    "workloads": (None, "idm_workload"),
    "counters": (None, "idm_counter"),
}
NUMBERS = {"losses", "listeners", "events"}


def objects() -> Iterator[Path]:
    found = sorted((ROOT / "build/bpf").glob("*.bpf.o"))
    if not found:
        missing("the BPF programs are not built: make -C bpf")
    yield from found


def btf_of(path: Path) -> Btf:
    with path.open("rb") as file:
        return Btf(ELFFile(file).get_section_by_name(".BTF").data())


def test_every_struct_of_the_header_is_compared() -> None:
    declared = set(re.findall(r"^struct (\w+) \{", HEADER.read_text(), re.MULTILINE))
    assert declared == set(STRUCTS)


def test_structs_lie_alike_in_c_and_in_the_btf_of_every_object() -> None:
    seen = set()
    for path in objects():
        structs = btf_of(path).structs()
        for name in STRUCTS:
            if name in structs:
                seen.add(name)
                assert (structs[name].size, dict(structs[name].offsets)) == c_layout(name), (path.name, name)
    assert seen >= {name for pair in MAPS.values() for name in pair if name}


def test_python_reads_every_field_where_c_has_it() -> None:
    for name in STRUCTS:
        size, offsets = c_layout(name)
        packer = row(name)
        assert packer.struct.size == packer.size == size
        leaves = {leaf.name: leaf.offset for leaf in packer.leaves}
        for field, offset in offsets.items():
            first = next(key for key in leaves if key == field or key.startswith(f"{field}_"))
            assert leaves[first] == offset, (name, field)


def test_no_struct_has_room_that_nobody_writes() -> None:
    """Keys are compared whole: a hole would make equal keys differ."""
    for name in STRUCTS:
        ends = 0
        for leaf in row(name).leaves:
            assert leaf.offset == ends, (name, leaf.name)
            ends += leaf.size
        assert ends == c_layout(name)[0]


def test_maps_in_the_kernel_have_rows_of_these_structs(folder: Path) -> None:
    datapath = Datapath.open(folder / "bpf", build(folder / "objects"), {"spans": 64})
    try:
        infos = {info.name: info for info in datapath.maps()}
    finally:
        datapath.cleanup()
    assert infos.keys() == MAPS.keys() | NUMBERS
    for name, (key, value) in MAPS.items():
        assert infos[name].key_size == (c_layout(key)[0] if key else infos[name].key_size), name
        assert infos[name].value_size == (c_layout(value)[0] if value else 4), name


def test_every_object_declares_all_shared_maps() -> None:
    """Beside them an object may have maps of its own, which are not pinned."""
    for path in objects():
        assert set(btf_of(path).maps()) >= MAPS.keys() | NUMBERS, path.name
