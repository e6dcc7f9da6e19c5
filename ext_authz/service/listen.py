# SPDX-License-Identifier: Apache-2.0
"""
Where the service may listen: a unix socket of ours, or TCP on loopback.

The service answers whoever connects, and its answers tell policy; without mutual TLS no other host may ask.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from dataclasses import dataclass


class AddressError(ValueError):
    """The address is malformed or not allowed."""


@dataclass(frozen=True, slots=True)
class Address:
    """path for a unix socket, else host (an IP literal) and port."""

    path: str = ""
    host: str = ""
    port: int = 0

    @property
    def text(self) -> str:
        """As grpc and people write it."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def worker(self, index: int, count: int) -> Address:
        """Address of one worker: PATH.0..N-1 or PORT..PORT+N-1; a single worker on a path keeps PATH.0 too."""
        if self.path:
            return Address(path=f"{self.path}.{index}")
        if self.port + count - 1 > 65535:
            raise AddressError(f"{self.text}: {count} workers need ports up to {self.port + count - 1}")
        return Address(host=self.host, port=self.port + index)


def parse_address(text: str) -> Address:
    """
    Read unix:PATH or HOST:PORT.

    Raises:
        AddressError: Malformed, an abstract socket, or TCP that is not loopback.
    """
    if text.startswith("unix:"):
        return _unix(text)
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise AddressError(f"{text}: want unix:PATH or HOST:PORT with a port from 1 to 65535")
    try:
        literal = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise AddressError(f"{text}: the host must be an IP address or localhost") from None
    if not literal.is_loopback:
        raise AddressError(
            f"{text}: TCP without mutual TLS is served on loopback only; use 127.0.0.1, ::1 or unix:PATH"
        )
    return Address(host=str(literal), port=int(port))


def _unix(text: str) -> Address:
    path = text.removeprefix("unix:")
    path = path[2:] if path.startswith("///") else path
    if not path or path.startswith("@") or "\0" in path:
        raise AddressError(f"{text}: abstract and unnamed sockets have no owner and no mode; give a path")
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > 104:  # sun_path is 108, worker numbers and the NUL included
        raise AddressError(f"{text}: the path is too long for a unix socket")
    return Address(path=path)


def clear_stale(address: Address) -> None:
    """
    Remove a socket file that nobody serves any more.

    Raises:
        OSError: Somebody answers there, or it is no socket.
    """
    if not address.path:
        return
    try:
        mode = os.lstat(address.path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"{address.path} exists and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address.path)
        except (ConnectionRefusedError, FileNotFoundError):
            os.unlink(address.path)
            return
    raise OSError(f"{address.path}: another process serves it")
