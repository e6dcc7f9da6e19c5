# SPDX-License-Identifier: Apache-2.0
"""Addresses from their texts; the same text gives the same object as long as it is remembered."""

from __future__ import annotations

import functools
import ipaddress

# Every text is read twice, by the model and by the compiler, a moment apart.
_REMEMBERED = 8192


@functools.lru_cache(maxsize=_REMEMBERED)
def read_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Raises ValueError."""
    return ipaddress.ip_address(text)
