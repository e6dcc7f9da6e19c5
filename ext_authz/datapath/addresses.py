# SPDX-License-Identifier: Apache-2.0
"""Addresses as maps have them: 16 bytes, IPv4 as ::ffff:a.b.c.d."""

from __future__ import annotations

import ipaddress


def packed(address: str) -> bytes:
    """
    Raises:
        ValueError: Not an address.
    """
    parsed = ipaddress.ip_address(address)
    return parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed


def unpacked(data: bytes) -> str:
    """The address as people write it."""
    mapped = ipaddress.IPv6Address(data)
    return str(mapped.ipv4_mapped or mapped)
