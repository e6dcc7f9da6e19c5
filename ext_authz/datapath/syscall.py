# SPDX-License-Identifier: Apache-2.0
"""
bpf(2) without the loader: for whoever only asks what is there.

Source: bpf(2); union bpf_attr in include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from enum import IntEnum
from pathlib import Path

_CALLS = {"x86_64": 321, "aarch64": 280}
_OBJECT_GET, _PROGRAM_BY_ID, _INFO, _QUERY = 7, 13, 15, 16
_NAME_AT, _NAME_SIZE = 64, 16
_LINK_INFO = struct.Struct("=III")  # kind, id, program
_PROGRAMS_MAX = 64

_libc = ctypes.CDLL(None, use_errno=True)


class AttachType(IntEnum):
    """Hooks that we use, by the kernel's numbers (BPF_TCX_INGRESS and so on)."""

    CGROUP_INGRESS = 0
    CGROUP_EGRESS = 1
    SOCKET_CREATE = 2
    SOCK_OPS = 3
    BIND4 = 8
    BIND6 = 9
    CONNECT4 = 10
    CONNECT6 = 11
    SENDMSG4 = 14
    SENDMSG6 = 15
    RECVMSG4 = 19
    RECVMSG6 = 20
    GETSOCKOPT = 21
    SETSOCKOPT = 22
    GETPEERNAME4 = 29
    GETPEERNAME6 = 30
    SK_LOOKUP = 36
    TCX_INGRESS = 46
    TCX_EGRESS = 47


def bpf(command: int, words: bytes | bytearray, path: Path | None = None) -> int:
    """
    One call; what the kernel writes back stands in `words` if it is a bytearray.

    Raises:
        OSError: The kernel refuses, or this machine's number of the call is not known; of `path` if one is named.
    """
    number = _CALLS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"not tried on {platform.machine()}")
    if isinstance(words, bytearray):
        room = (ctypes.c_char * len(words)).from_buffer(words)
    else:
        room = ctypes.create_string_buffer(words, len(words))
    result = int(_libc.syscall(number, command, room, len(words)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path) if path else None)
    return result


def open_pin(path: Path, flags: int = 0) -> int:
    """
    A descriptor of what is pinned there.

    Raises:
        OSError: There is no such pin, or it may not be opened.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    return bpf(_OBJECT_GET, struct.pack("=QII", ctypes.addressof(name), 0, flags), path)


def info_of(descriptor: int, size: int) -> bytes:
    """
    The beginning of what the kernel says of a map, program or link.

    Raises:
        OSError: It is none.
    """
    info = ctypes.create_string_buffer(size)
    bpf(_INFO, struct.pack("=IIQ", descriptor, size, ctypes.addressof(info)))
    return info.raw


def attached_programs(target: int, attach_type: AttachType) -> list[int]:
    """
    Numbers of the programs on an interface of this namespace (by its number), or on a cgroup or namespace (by a
    descriptor), in the order in which they run; those that it inherits do not count.

    Raises:
        OSError: There is no such hook, or this process may not ask.
    """
    ids = (ctypes.c_uint32 * _PROGRAMS_MAX)()
    words = bytearray(
        struct.pack("=IIIIQI", target, attach_type, 0, 0, ctypes.addressof(ids), _PROGRAMS_MAX).ljust(64, b"\0")
    )
    bpf(_QUERY, words)
    count = struct.unpack_from("=I", words, 24)[0]
    return list(ids[:count])


def program_name(number: int) -> str:
    """The kernel's name of a program (15 characters of it); empty if it has none, or is gone."""
    try:
        handle = bpf(_PROGRAM_BY_ID, struct.pack("=III", number, 0, 0))
    except OSError:
        return ""
    try:
        raw = info_of(handle, 232)[_NAME_AT : _NAME_AT + _NAME_SIZE]
        return raw.rstrip(b"\0").decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(handle)


def pinned_program(link: Path) -> int:
    """
    Number of the program that a pinned link holds.

    Raises:
        OSError: It is no link.
    """
    handle = open_pin(link)
    try:
        return int(_LINK_INFO.unpack_from(info_of(handle, _LINK_INFO.size))[2])
    finally:
        os.close(handle)
