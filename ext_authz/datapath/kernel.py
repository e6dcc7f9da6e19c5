# SPDX-License-Identifier: Apache-2.0
"""What this kernel and this process can do with BPF, asked before anything is loaded."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from ext_authz.datapath._datapath import lib
from ext_authz.datapath.errors import Unsupported

BTF = Path("/sys/kernel/btf/vmlinux")
_STATUS = Path("/proc/self/status")
# SYS_ADMIN holds the power of the others for old habits' sake.
_NET_ADMIN, _SYS_ADMIN, _PERFMON, _BPF = 12, 21, 38, 39
_NAMES = {_NET_ADMIN: "CAP_NET_ADMIN", _PERFMON: "CAP_PERFMON", _BPF: "CAP_BPF", _SYS_ADMIN: "CAP_SYS_ADMIN"}


def check_privileges(status: Path = _STATUS) -> None:
    """
    Raises:
        Unsupported: A capability is missing, by name.
    """
    held = next(int(line.split()[1], 16) for line in status.read_text().splitlines() if line.startswith("CapEff"))
    wanted = {_NET_ADMIN, _SYS_ADMIN}  # SYS_ADMIN to mount, and to enter namespaces
    missing = sorted(_NAMES[bit] for bit in wanted if not held >> bit & 1)
    if missing:
        who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
        raise Unsupported(f"the BPF data path needs {' and '.join(missing)}, which this process ({who}) lacks")


def check_btf(path: Path = BTF) -> None:
    """
    Raises:
        Unsupported: The kernel does not say how its structs lie.
    """
    if not path.exists():
        raise Unsupported(f"{path} is missing: the kernel was built without CONFIG_DEBUG_INFO_BTF")


@cache
def has(kind: str, number: int) -> bool:
    """Whether the kernel knows a "program" or "map" type; it is asked by making one."""
    return bool(lib.idm_datapath_probe(0 if kind == "program" else 1, number) > 0)
