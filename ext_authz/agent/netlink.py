# SPDX-License-Identifier: Apache-2.0
"""
What rtnetlink tells of links, addresses and namespaces: as much as attaching a workload needs, and no command run.

Source: rtnetlink(7), netlink(7), include/uapi/linux/if_link.h
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TypeVar

_T = TypeVar("_T")

_NEWLINK, _DELLINK, _GETLINK, _GETADDR, _GETNSID = 16, 17, 18, 22, 90
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP = 1, 0x300
_HEADER, _LINK, _ADDRESS = struct.Struct("=IHHII"), struct.Struct("=BxHiII"), struct.Struct("=BBBBI")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINK, _IFLA_LINKINFO, _IFLA_LINK_NETNSID = 1, 3, 5, 18, 37
_INFO_KIND = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _NETNSA_NSID, _NETNSA_FD = 1, 2, 4, 1, 3
_SCOPE_UNIVERSE = 0
_LINKS = 1  # RTMGRP_LINK
_GROUPS = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_EVERYWHERE = ("255.255.255.255",)
_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Link:
    """link: ifindex of the other side of a veth, which lies in the namespace nsid (None: in this one)."""

    ifindex: int
    name: str
    kind: str
    mac: str
    link: int
    nsid: int | None


def in_namespace(descriptor: int, work: Callable[[], _T]) -> _T:
    """Run something in another network namespace: in a thread of its own, which ends there."""
    found: list[_T] = []
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            if _libc.setns(descriptor, _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, f"setns: {os.strerror(number)}")
            found.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


class Netlink:
    """One conversation with the namespace in which it was opened; a context."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def link(self, ifindex: int = 0, name: str = "") -> Link | None:
        """By number or name; None: there is none."""
        request = _LINK.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
        if name:
            request += _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        try:
            return next((_read_link(message) for message in self._ask(_GETLINK, 0, request)), None)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EINVAL):
                return None
            raise

    def addresses(self, ifindex: int) -> tuple[str, ...]:
        """Global addresses of a link, in the order of the kernel."""
        found = []
        for message in self._ask(_GETADDR, _DUMP, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            family, _, _, scope, index = _ADDRESS.unpack_from(message)
            if index != ifindex or scope != _SCOPE_UNIVERSE or family not in (socket.AF_INET, socket.AF_INET6):
                continue
            attributes = dict(_attributes(message[_ADDRESS.size :]))
            raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
            if raw:
                found.append(str(ip_address(raw)))
        return tuple(dict.fromkeys(found))

    def own(self) -> frozenset[str]:
        """
        Every address at which this host takes packets in: its own, the broadcast addresses of its links, and the
        anycast address that every router of an IPv6 prefix has (RFC 4291, 2.6.1), which Linux takes while it forwards.
        """
        found = set(_EVERYWHERE)
        for message in self._ask(_GETADDR, _DUMP, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            family, bits, _, _, _ = _ADDRESS.unpack_from(message)
            attributes = dict(_attributes(message[_ADDRESS.size :]))
            raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
            if raw and family in (socket.AF_INET, socket.AF_INET6):
                found.add(str(ip_address(raw)))
            if raw and family == socket.AF_INET and bits < 31:
                network = ip_network((attributes.get(_IFA_ADDRESS, raw), bits), strict=False)
                found |= {str(network.network_address), str(network.broadcast_address)}
            if family == socket.AF_INET and _IFA_BROADCAST in attributes:
                found.add(str(ip_address(attributes[_IFA_BROADCAST])))
            if raw and family == socket.AF_INET6 and bits < 127:
                found.add(str(ip_network((attributes.get(_IFA_ADDRESS, raw), bits), strict=False).network_address))
        return frozenset(found)

    def watch(self) -> int:
        """A descriptor that is readable once addresses have changed; `drain` before the next look."""
        self._socket.bind((0, _GROUPS))
        self._socket.setblocking(False)
        return self._socket.fileno()

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while self._socket.recv(1 << 16):
                pass

    def nsid(self, descriptor: int) -> int | None:
        """The number that this namespace has for another one; None: it has none."""
        request = struct.pack("=B3x", socket.AF_UNSPEC) + _attribute(_NETNSA_FD, struct.pack("=I", descriptor))
        for message in self._ask(_GETNSID, 0, request):
            raw = dict(_attributes(message[4:])).get(_NETNSA_NSID)
            if raw is not None:
                number = int.from_bytes(raw, "little", signed=True)
                return number if number >= 0 else None
        return None

    def _ask(self, kind: int, flags: int, request: bytes) -> Iterator[bytes]:
        self._socket.send(_HEADER.pack(_HEADER.size + len(request), kind, _REQUEST | flags, 1, 0) + request)
        while True:
            data = self._socket.recv(1 << 20)
            while data:
                size, answer, _, _, _ = _HEADER.unpack_from(data)
                body, data = data[_HEADER.size : size], data[(size + 3) & ~3 :]
                if answer == _DONE:
                    return
                if answer == _ERROR:
                    number = -int.from_bytes(body[:4], "little", signed=True)
                    if number:
                        raise OSError(number, os.strerror(number))
                    return
                yield body
            if not flags & _DUMP:
                return


class LinkChanges:
    """Of which interfaces of this namespace the kernel has told since it was last asked."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, _LINKS))
        self._socket.setblocking(False)

    def since(self) -> set[int] | None:
        """
        Their numbers; None: of more than it could keep for us, so that any may have changed.

        Raises:
            OSError: It tells nothing more.
        """
        found: set[int] | None = set()
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = None
                continue
            if found is not None:
                found |= set(_told_of(data))

    def close(self) -> None:
        self._socket.close()


def _told_of(data: bytes) -> Iterator[int]:
    while len(data) >= _HEADER.size:
        size, kind, _, _, _ = _HEADER.unpack_from(data)
        if kind in (_NEWLINK, _DELLINK):
            yield _LINK.unpack_from(data, _HEADER.size)[2]
        data = data[(size + 3) & ~3 :]


def _read_link(message: bytes) -> Link:
    _, _, ifindex, _, _ = _LINK.unpack_from(message)
    found = dict(_attributes(message[_LINK.size :]))
    info = dict(_attributes(found.get(_IFLA_LINKINFO, b"")))
    nsid = found.get(_IFLA_LINK_NETNSID)
    return Link(
        ifindex,
        found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace"),
        info.get(_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace"),
        found.get(_IFLA_ADDRESS, b"").hex(":"),
        int.from_bytes(found.get(_IFLA_LINK, b""), "little"),
        None if nsid is None else int.from_bytes(nsid, "little", signed=True),
    )


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        if size < 4 or size > len(data):
            return
        yield kind & 0x3FFF, data[4:size]
        data = data[(size + 3) & ~3 :]
