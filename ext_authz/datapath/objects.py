# SPDX-License-Identifier: Apache-2.0
"""
BPF objects before the kernel sees them: what is wrong is said in words, not by a verifier's log.

Every object must carry type information, the number of our layout, structs that lie as the loader's do, and a
license that the kernel takes for GPL; and its kinds of programs and maps must be known to this kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from ext_authz.datapath.btf import Btf, BtfError
from ext_authz.datapath.errors import ObjectError, Unsupported
from ext_authz.datapath.layout import LAYOUT, STRUCTS, c_layout

SUFFIX = ".bpf.o"
_MACHINE = "EM_BPF"
_EXECUTABLE = 4
_NEEDED = ("license", ".maps", ".BTF", ".BTF.ext", "idmesh.layout")
_LICENSES = ("GPL", "GPL v2", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL")
# Beginnings of program sections to the kernel's program types, most special first.
_PROGRAMS = {
    "cgroup_skb/": 8,
    "cgroup/skb": 8,
    "cgroup/getsockopt": 25,
    "cgroup/setsockopt": 25,
    "cgroup/sock": 9,
    "cgroup/post_bind": 9,
    "cgroup/": 18,
    "sockops": 13,
    "sk_msg": 16,
    "sk_lookup": 30,
    "tcx/": 3,
    "tc": 3,
    "classifier": 3,
    "xdp": 6,
    "kprobe/": 2,
    "fentry/": 26,
}
_PROGRAM_NAMES = {
    2: "kprobe",
    3: "sched_cls (tc)",
    6: "xdp",
    8: "cgroup_skb",
    9: "cgroup_sock",
    13: "sock_ops",
    16: "sk_msg",
    18: "cgroup_sock_addr",
    25: "cgroup_sockopt",
    26: "tracing",
    30: "sk_lookup",
}
_MAP_NAMES = {1: "HASH", 2: "ARRAY", 6: "PERCPU_ARRAY", 9: "LRU_HASH", 11: "LPM_TRIE", 15: "SOCKMAP", 27: "RINGBUF"}

# (kind, number) -> True if this kernel has it. kind: "program" or "map".
Probe = Callable[[str, int], bool]


@dataclass(frozen=True)
class BpfObject:
    """One checked object."""

    path: Path
    programs: tuple[str, ...]  # their sections
    maps: dict[str, int]


def objects_in(folder: Path) -> list[Path]:
    """
    The objects of a folder.

    Raises:
        ObjectError: There are none.
    """
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if not found:
        raise ObjectError(f"{folder}: no BPF objects (*{SUFFIX}); build them: make -C bpf")
    return found


def check(path: Path, probe: Probe | None = None) -> BpfObject:
    """
    Read an object and say what the kernel would stumble over.

    Raises:
        ObjectError: It is damaged, of another layout, or was built otherwise than ours.
        Unsupported: It needs what this kernel lacks.
    """
    try:
        with path.open("rb") as file:
            found = _check(path, ELFFile(file))
    except OSError as error:
        raise ObjectError(f"{path}: {error.strerror}") from None
    except ELFError as error:
        raise ObjectError(f"{path}: not an ELF file: {error}") from None
    if probe is not None:
        _check_features(found, probe)
    return found


def _check(path: Path, elf: ELFFile) -> BpfObject:
    if elf["e_machine"] != _MACHINE:
        raise ObjectError(f"{path}: built for {elf['e_machine']}, not for BPF")
    if not elf.little_endian:
        raise ObjectError(f"{path}: big endian; this loader serves little endian machines")
    sections = {section.name: section for section in elf.iter_sections()}
    for name in _NEEDED:
        if name not in sections:
            why = ": it was built without -g" if name.startswith(".BTF") else ""
            raise ObjectError(f"{path}: section {name} is missing{why}")
    _check_layout(path, sections["idmesh.layout"].data())
    _check_license(path, sections["license"].data())
    btf = _read_btf(path, sections[".BTF"].data())
    programs = tuple(
        name for name, section in sections.items() if section["sh_flags"] & _EXECUTABLE and section["sh_size"] and name
    )
    if not set(programs) - {".text"}:
        raise ObjectError(f"{path}: no program in it")
    return BpfObject(path, tuple(name for name in programs if name != ".text"), btf.maps())


def _check_layout(path: Path, data: bytes) -> None:
    layout = int.from_bytes(data, "little")
    if layout != LAYOUT:
        raise ObjectError(f"{path}: layout {layout}, this loader has layout {LAYOUT}; build both from the same sources")


def _check_license(path: Path, data: bytes) -> None:
    license_name = data.rstrip(b"\0").decode("ascii", "backslashreplace")
    if license_name not in _LICENSES:
        raise ObjectError(
            f"{path}: license {license_name!r} is none that the kernel lends its helpers to; ours are 'Dual BSD/GPL'"
        )


def _read_btf(path: Path, data: bytes) -> Btf:
    try:
        btf = Btf(data)
        structs = btf.structs()
    except BtfError as error:
        raise ObjectError(f"{path}: {error}") from None
    for name in STRUCTS:
        if name in structs and (structs[name].size, dict(structs[name].offsets)) != c_layout(name):
            raise ObjectError(
                f"{path}: struct {name} lies otherwise than this loader's; build both from the same sources"
            )
    return btf


def _check_features(found: BpfObject, probe: Probe) -> None:
    for section in found.programs:
        number = next((number for start, number in _PROGRAMS.items() if section.startswith(start)), None)
        if number is None:
            raise ObjectError(f"{found.path}: section {section} is of no kind that we know")
        if not probe("program", number):
            raise Unsupported(f"{found.path}: this kernel has no programs of type {_PROGRAM_NAMES[number]} ({section})")
    for name, number in found.maps.items():
        if not probe("map", number):
            raise Unsupported(
                f"{found.path}: this kernel has no maps of type {_MAP_NAMES.get(number, number)} ({name})"
            )
