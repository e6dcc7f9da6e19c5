# SPDX-License-Identifier: Apache-2.0
"""Memory and processor time of the node's processes, from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """pss_bytes: shared pages counted by their share; -1 where the kernel does not tell us."""

    rss_bytes: int
    pss_bytes: int
    cpu_s: float


def usage_of(pid: int) -> Usage | None:
    """None if there is no such process."""
    proc = Path(f"/proc/{pid}")
    try:
        # The command's name stands in parentheses and may hold anything.
        fields = (proc / "stat").read_bytes().rpartition(b")")[2].split()
        return Usage(int(fields[21]) * _PAGE, _pss(proc), (int(fields[11]) + int(fields[12])) / _TICKS)
    except (OSError, ValueError, IndexError):
        return None


def _pss(proc: Path) -> int:
    try:
        for line in (proc / "smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return -1
