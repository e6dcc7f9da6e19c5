# SPDX-License-Identifier: Apache-2.0
"""
What else acts on a workload's packets or on the listener they are steered to, as the kernel tells it.

Source: bpf(2) BPF_PROG_QUERY and BPF_OBJ_GET_INFO_BY_FD; sock_diag(7), include/uapi/linux/inet_diag.h
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import socket
import struct
from collections.abc import Iterator

_CALLS = {"x86_64": 321, "aarch64": 280}
_PROGRAM_BY_ID, _INFO, _QUERY = 13, 15, 16
TCX = {"ingress": 46, "egress": 47}
OURS = {"ingress": "from_workload", "egress": "to_workload"}
_NAME_AT, _NAME_SIZE = 64, 16
_PROGRAMS_MAX = 64
_SOCK_DIAG, _BY_FAMILY, _DUMP, _DONE, _ERROR = 4, 20, 0x301, 3, 2
_LISTEN = 1 << 10
_MESSAGE_SIZE, _SOCKOPT, _TRANSPARENT = 72, 22, 1 << 5

_libc = ctypes.CDLL(None, use_errno=True)


def tcx_programs(ifindex: int, way: str) -> list[str]:
    """Names of the programs on an interface of this namespace, in the order in which they run."""
    ids = (ctypes.c_uint32 * _PROGRAMS_MAX)()
    words = bytearray(
        struct.pack("=IIIIQI", ifindex, TCX[way], 0, 0, ctypes.addressof(ids), _PROGRAMS_MAX).ljust(64, b"\0")
    )
    if _bpf(_QUERY, words) < 0:
        return []
    count = struct.unpack_from("=I", words, 24)[0]
    return [_program_name(ids[index]) for index in range(count)]


def _program_name(number: int) -> str:
    """The kernel's name of a program, or its number."""
    handle = _bpf(_PROGRAM_BY_ID, bytearray(struct.pack("=III", number, 0, 0)))
    if handle < 0:
        return f"program {number}"
    try:
        info = ctypes.create_string_buffer(232)
        if _bpf(_INFO, bytearray(struct.pack("=IIQ", handle, len(info), ctypes.addressof(info)))) < 0:
            return f"program {number}"
        name = info.raw[_NAME_AT : _NAME_AT + _NAME_SIZE].rstrip(b"\0").decode("ascii", "replace")
        return name or f"program {number}"
    finally:
        os.close(handle)


def _bpf(command: int, words: bytearray) -> int:
    number = _CALLS.get(platform.machine())
    if number is None:
        return -1
    room = (ctypes.c_char * len(words)).from_buffer(words)
    return int(_libc.syscall(number, command, room, len(words)))


def is_transparent(port: int, family: int = socket.AF_INET) -> bool | None:
    """Whether who listens at this port of loopback takes connections of any destination; None: nobody listens."""
    loopback = socket.inet_pton(family, "127.0.0.1" if family == socket.AF_INET else "::1")
    found: bool | None = None
    for address, number, options in _listeners(family):
        if number == port and address[: len(loopback)] == loopback:
            found = bool(found) or bool(options & _TRANSPARENT)
    return found


def _listeners(family: int) -> Iterator[tuple[bytes, int, int]]:
    """Address, port and the first byte of struct inet_diag_sockopt."""
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, _LISTEN) + bytes(48)
    with contextlib.closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)) as line:
        line.send(struct.pack("=IHHII", 16 + len(request), _BY_FAMILY, _DUMP, 1, 0) + request)
        while True:
            data = line.recv(1 << 16)
            while data:
                size, kind = struct.unpack_from("=IH", data)
                if kind in (_DONE, _ERROR):
                    return
                body, data = data[16:size], data[(size + 3) & ~3 :]
                port = struct.unpack_from(">H", body, 4)[0]
                yield body[8:24], port, _options(body[_MESSAGE_SIZE:])


def _options(attributes: bytes) -> int:
    while len(attributes) >= 4:
        size, kind = struct.unpack_from("=HH", attributes)
        if size < 4:
            return 0
        if kind == _SOCKOPT:
            return attributes[4]
        attributes = attributes[(size + 3) & ~3 :]
    return 0
