# SPDX-License-Identifier: Apache-2.0
"""One layout, three readers: what the C compiler laid out, what cffi says, and what Python packs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from ext_authz.engine._engine import ffi

from ext_authz.engine import layout

INCLUDE = Path(__file__).parents[3] / "native" / "include"
STRUCTS = sorted(
    {section.item for sections in layout.SECTIONS.values() for section in sections} - {"u32", "bytes"}
    | {
        "idm_header",
        "idm_table_ref",
        "idm_section",
        "idm_side",
        "idm_batch_flow",
        "idm_batch_header",
        "idm_batch_verdict",
    }
)


def _c_name(name: str) -> str:
    """A flattened field's name as C writes it."""
    return name.replace("side_0_", "side[0].").replace("side_1_", "side[1].")


def _probe(name: str, leaf: layout.Leaf, groups: dict[str, str]) -> str:
    field = groups.get(leaf.name, _c_name(leaf.name))
    size = f"sizeof(((struct {name} *)0)->{field})"
    return f'printf("{name} {leaf.name} %zu %zu\\n", offsetof(struct {name}, {field}), {size});'


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, ...]]:
    """(struct, field, offset, size) as the C compiler prints them."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "a C compiler built the engine, so there must be one"
    lines = []
    for name in STRUCTS:
        record = layout.record(name)
        nested = {
            leaf: f"{group}.{leaf.removeprefix(group + '_')}"
            for group, leaves in record.groups.items()
            for leaf in leaves
        }
        nested = {leaf: text for leaf, text in nested.items() if not leaf.startswith("side_")}
        lines.append(f'printf("{name} - 0 %zu\\n", sizeof(struct {name}));')
        lines += [_probe(name, leaf, nested) for leaf in record.leaves]
    folder = tmp_path_factory.mktemp("layout")
    source = folder / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n"
        '#include "idmesh/engine.h"\nint main(void) {\n' + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    subprocess.run([compiler, "-std=c11", "-I", INCLUDE, "-o", folder / "layout", source], check=True)
    output = subprocess.run([folder / "layout"], check=True, capture_output=True, text=True).stdout
    return {tuple(line.split()) for line in output.splitlines()}


def test_sizes_and_offsets_agree_between_c_and_python(compiled: set[tuple[str, ...]]) -> None:
    expected = {(name, "-", "0", str(layout.record(name).size)) for name in STRUCTS}
    expected |= {
        (name, leaf.name, str(leaf.offset), str(leaf.size)) for name in STRUCTS for leaf in layout.record(name).leaves
    }
    assert compiled == expected


@pytest.mark.parametrize("name", STRUCTS)
def test_packed_bytes_are_what_cffi_reads(name: str) -> None:
    record = layout.record(name)
    values = {
        leaf.name: bytes(range(leaf.size)) if leaf.code.endswith("s") else index + 1
        for index, leaf in enumerate(record.leaves)
        if not leaf.code.endswith("x")
    }
    packed = record.pack(**values)
    assert len(packed) == record.size == ffi.sizeof(f"struct {name}")
    assert record.unpack_from(packed) == values
    item = ffi.cast(f"struct {name} *", ffi.from_buffer(packed))
    for field, value in values.items():
        if field in dict(ffi.typeof(f"struct {name}").fields) and not isinstance(value, bytes):
            assert getattr(item, field) == value


def test_a_missing_or_unknown_field_is_an_error() -> None:
    with pytest.raises(TypeError, match="offset"):
        layout.record("idm_string").pack(size=1)
    with pytest.raises(TypeError, match="length"):
        layout.record("idm_string").pack(offset=0, size=1, length=2)


def test_a_nested_struct_takes_a_sequence() -> None:
    packed = layout.record("idm_named_port").pack(name=(3, 4), port=80, protocol=6)
    assert layout.record("idm_named_port").unpack_from(packed) == {
        "name_offset": 3,
        "name_size": 4,
        "port": 80,
        "protocol": 6,
    }


def test_a_struct_with_implicit_padding_is_refused() -> None:
    with pytest.raises(TypeError):
        layout.record("idm_header_line")
