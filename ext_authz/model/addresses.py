# SPDX-License-Identifier: Apache-2.0
"""Addresses from their texts; the same text gives the same object as long as it is among the newest."""

from __future__ import annotations

import functools
import ipaddress

# Of one build's changes, which the model reads first and the compiler a moment later. A first build of more finds none.
_REMEMBERED = 8192


@functools.lru_cache(maxsize=_REMEMBERED)
def read_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Raises ValueError."""
    return ipaddress.ip_address(text)
