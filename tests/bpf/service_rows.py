# SPDX-License-Identifier: Apache-2.0
"""Rows of services and backends, written by hand as idmesh/datapath.h says."""

from __future__ import annotations

import socket
import struct

from tests.bpf.bare import Bare, address, u32

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
BACKEND = struct.Struct("=16sHBBI")
KEY = struct.Struct("=16sHBB")
SERVICE = struct.Struct("=IIII")

Place = tuple[str, int]


def put_service(
    bare: Bare,
    where: Place,
    backends: list[Place],
    number: int,
    protocol: int = TCP,
    affinity_s: int = 0,
    first: int | None = None,
) -> None:
    """A service at an address (0.0.0.0 and :: mean NodePort); its rows begin at `first`, else at number * 16."""
    start = number * 16 if first is None else first
    for index, (text, port) in enumerate(backends, start):
        bare.update("backends", u32(index), BACKEND.pack(address(text), port, protocol, 0, number))
    bare.update("services", service_key(where, protocol), SERVICE.pack(start, len(backends), affinity_s, number))


def service_key(where: Place, protocol: int = TCP) -> bytes:
    return KEY.pack(address(where[0]), where[1], protocol, 0)
