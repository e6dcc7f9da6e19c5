# SPDX-License-Identifier: Apache-2.0
"""
Objects, maps and cgroup links with nothing but libbpf, and functions run as processes of a cgroup.

What tests of single programs need of a loader, so that they say what a program does and not what a loader makes of it.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import struct
import traceback
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

from ext_authz.play.network import Space

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = ROOT / "build/bpf"
# The kernel's enum bpf_attach_type.
CGROUP = {
    "ingress": 0,
    "egress": 1,
    "create": 2,
    "bind4": 8,
    "bind6": 9,
    "connect4": 10,
    "connect6": 11,
    "sendmsg4": 14,
    "sendmsg6": 15,
    "recvmsg4": 19,
    "recvmsg6": 20,
    "getsockopt": 21,
    "setsockopt": 22,
    "getpeername4": 29,
    "getpeername6": 30,
}

_libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
for _name in ("bpf_object__open_file", "bpf_object__find_program_by_name", "bpf_object__find_map_by_name"):
    getattr(_libbpf, _name).restype = ctypes.c_void_p
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _OpenOptions(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
        ("reserved", ctypes.c_uint32),
        ("kconfig", ctypes.c_char_p),
        ("btf_custom_path", ctypes.c_char_p),
        ("kernel_log_buf", ctypes.c_char_p),
        ("kernel_log_size", ctypes.c_size_t),
        ("kernel_log_level", ctypes.c_uint32),
    ]


def _checked(value: int, what: str) -> int:
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return value


class Bare:
    """The objects loaded, their maps shared by pins in a folder of a bpffs. Links go with close()."""

    def __init__(self, pins: Path, *names: str) -> None:
        self._objects = [_load(OBJECTS / f"{name}.bpf.o", pins) for name in names]
        self._links: list[int] = []
        self.maps: dict[str, int] = {}

    def program(self, name: str) -> int:
        """The program's descriptor."""
        for loaded in self._objects:
            found = _libbpf.bpf_object__find_program_by_name(ctypes.c_void_p(loaded), name.encode())
            if found:
                return _checked(_libbpf.bpf_program__fd(ctypes.c_void_p(found)), name)
        raise KeyError(name)

    def attach(self, cgroup: Path, **hooks: str) -> None:
        """Link programs to a cgroup: hook (of CGROUP) to program."""
        descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for hook, name in hooks.items():
                link = _libbpf.bpf_link_create(self.program(name), descriptor, CGROUP[hook], None)
                self._links.append(_checked(link, f"{name} at {cgroup}"))
        finally:
            os.close(descriptor)

    def detach(self) -> None:
        while self._links:
            os.close(self._links.pop())

    def map(self, name: str) -> int:
        """The map's descriptor."""
        if name not in self.maps:
            found = _libbpf.bpf_object__find_map_by_name(ctypes.c_void_p(self._objects[0]), name.encode())
            self.maps[name] = _checked(_libbpf.bpf_map__fd(ctypes.c_void_p(found)), name)
        return self.maps[name]

    def update(self, name: str, key: bytes, value: bytes) -> None:
        _checked(_libbpf.bpf_map_update_elem(self.map(name), key, value, ctypes.c_uint64(0)), f"update of {name}")

    def delete(self, name: str, key: bytes) -> None:
        _checked(_libbpf.bpf_map_delete_elem(self.map(name), key), f"delete from {name}")

    def read(self, name: str, key_size: int, value_size: int) -> dict[bytes, bytes]:
        """All rows of a hash."""
        found: dict[bytes, bytes] = {}
        before: Any = None
        key, value = ctypes.create_string_buffer(key_size), ctypes.create_string_buffer(value_size)
        while _libbpf.bpf_map_get_next_key(self.map(name), before, key) == 0:
            before = key.raw
            if _libbpf.bpf_map_lookup_elem(self.map(name), key, value) == 0:
                found[before] = value.raw
        return found

    def close(self) -> None:
        self.detach()
        for loaded in self._objects:
            _libbpf.bpf_object__close(ctypes.c_void_p(loaded))
        self._objects.clear()


def _load(path: Path, pins: Path) -> int:
    said: list[str] = []
    libc = ctypes.CDLL(None)

    @_PRINT
    def keep(_level: int, form: bytes, arguments: int) -> int:
        text = ctypes.create_string_buffer(1 << 16)
        length = libc.vsnprintf(text, len(text), form, ctypes.c_void_p(arguments))
        said.append(text.value.decode(errors="replace"))
        return int(length)

    options = _OpenOptions(sz=ctypes.sizeof(_OpenOptions), pin_root_path=str(pins).encode())
    _libbpf.libbpf_set_print(keep)
    try:
        loaded = _libbpf.bpf_object__open_file(str(path).encode(), ctypes.byref(options))
        if not loaded or _libbpf.bpf_object__load(ctypes.c_void_p(loaded)):
            raise OSError(ctypes.get_errno(), f"{path.name} was not loaded:\n{''.join(said)[-8000:]}")
    finally:
        _libbpf.libbpf_set_print(None)
    return int(loaded)


def address(text: str) -> bytes:
    """16 bytes, IPv4 as ::ffff:a.b.c.d."""
    parsed = ip_address(text)
    return (b"\0" * 10 + b"\xff\xff" if isinstance(parsed, IPv4Address) else b"") + parsed.packed


def run_in(cgroup: Path, space: Space, function: Callable[[], Any]) -> Any:
    """What a function returns as a process of the cgroup, in the network namespace; its exception is raised here."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            with space.inside():
                answer = (True, function())
        except BaseException as error:
            answer = (False, error)
            if not isinstance(error, OSError):
                traceback.print_exc()
        with os.fdopen(writing, "wb") as out:
            pickle.dump(answer, out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as into:
        data = into.read()
    os.waitpid(child, 0)
    good, value = pickle.loads(data)
    if not good:
        raise value
    return value


def u32(value: int) -> bytes:
    return struct.pack("=I", value)
