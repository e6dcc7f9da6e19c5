# SPDX-License-Identifier: Apache-2.0
"""The shared object itself: what it offers, what it needs, and its parts under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from envoy_harness import MODULE, ROOT, VERSIONS, envoy_of, missing

_HOOK, _CALLBACK = "envoy_dynamic_module_on_", "envoy_dynamic_module_callback_"
_NATIVE = ROOT / "native"


def _symbols(path: Path) -> tuple[set[str], dict[str, bool]]:
    """Names a file exports, and those it needs (True: weak)."""
    exported, needed = set(), {}
    with path.open("rb") as file:
        for symbol in ELFFile(file).get_section_by_name(".dynsym").iter_symbols():
            if not symbol.name:
                continue
            if symbol["st_shndx"] == "SHN_UNDEF":
                needed[symbol.name] = symbol["st_info"]["bind"] == "STB_WEAK"
            else:
                exported.add(symbol.name)
    return exported, needed


def test_only_hooks_are_exported() -> None:
    exported, _ = _symbols(MODULE)
    assert exported
    assert {name for name in exported if not name.startswith(_HOOK)} == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_each_envoy_offers_every_callback_that_is_not_weak(version: str) -> None:
    _, needed = _symbols(MODULE)
    offered, _ = _symbols(envoy_of(version).path)
    wanted = {name for name, weak in needed.items() if name.startswith(_CALLBACK) and not weak}
    assert len(wanted) > 20
    assert wanted - offered == set()


def test_only_the_c_library_is_needed() -> None:
    with MODULE.open("rb") as file:
        tags = ELFFile(file).get_section_by_name(".dynamic").iter_tags("DT_NEEDED")
        assert {tag.needed for tag in tags} <= {
            "libc.so.6",
            "libpthread.so.0",
            "ld-linux-x86-64.so.2",
            "ld-linux-aarch64.so.1",
        }


_UNITS = {
    "module_units.c": ("address.c", "door.c", "json.c", "view.c"),
    "record_units.c": ("address.c", "door.c", "json.c", "view.c", "record.c", "rings.c"),
}


@pytest.mark.parametrize("units", _UNITS)
def test_parts_that_need_no_envoy_under_sanitizers(units: str, tmp_path: Path) -> None:
    compiler = shutil.which("clang") or shutil.which("gcc")
    if compiler is None:
        missing("no C compiler")
        return
    program = tmp_path / "units"
    sources = [Path(__file__).with_name(units)]
    sources += [_NATIVE / "envoy" / name for name in _UNITS[units]]
    sources += [*sorted((_NATIVE / "engine").glob("*.c")), *sorted((_NATIVE / "flow").glob("*.c"))]
    flags = ["-std=gnu11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread"]
    includes = [f"-I{_NATIVE / 'include'}", f"-I{_NATIVE / 'envoy'}", f"-I{_NATIVE.parent / 'bpf/include'}"]
    subprocess.run([compiler, *flags, *includes, "-o", str(program), *map(str, sources)], check=True)
    subprocess.run([str(program)], check=True, timeout=120)
