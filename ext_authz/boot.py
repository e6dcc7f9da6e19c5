# SPDX-License-Identifier: Apache-2.0
"""Which start of this host it is: interface numbers, cgroups, rules and sysctls mean nothing after the next one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@cache
def boot_id() -> str:
    """The kernel's random number of this start; empty if it does not say."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
