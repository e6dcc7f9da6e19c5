# SPDX-License-Identifier: Apache-2.0
"""
What else acts on a workload's packets or on the listener they are steered to, as the kernel tells it.

Source: sock_diag(7), include/uapi/linux/inet_diag.h
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

from ext_authz.datapath.syscall import AttachType, attached_programs, program_name

TCX = {"ingress": AttachType.TCX_INGRESS, "egress": AttachType.TCX_EGRESS}
OURS = {"ingress": "from_workload", "egress": "to_workload"}
_SOCK_DIAG, _BY_FAMILY, _DUMP, _DONE, _ERROR = 4, 20, 0x301, 3, 2
_LISTEN = 1 << 10
_MESSAGE_SIZE, _SOCKOPT, _TRANSPARENT = 72, 22, 1 << 5


def tcx_programs(ifindex: int, way: str) -> list[str]:
    """Names of the programs on an interface of this namespace, in the order in which they run."""
    try:
        return [program_name(number) or f"program {number}" for number in attached_programs(ifindex, TCX[way])]
    except OSError:
        return []


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
