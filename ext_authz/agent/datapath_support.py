# SPDX-License-Identifier: Apache-2.0
"""Whether this host can have a data path in the kernel at all, asked without changing anything."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from ext_authz.datapath.syscall import bpf

BTF = Path("/sys/kernel/btf/vmlinux")
_MAP_CREATE, _ARRAY = 0, 2


def why_not() -> str:
    """The first thing that is missing, or empty."""
    if os.geteuid() != 0:
        return "not root"
    if not BTF.exists():
        return f"the kernel has no BTF ({BTF} is missing)"
    if not _has_bpffs():
        return "the kernel has no BPF file system"
    return _refused() or _unbuilt()


def _has_bpffs() -> bool:
    try:
        return any(line.split()[-1:] == ["bpf"] for line in Path("/proc/filesystems").read_text().splitlines())
    except OSError:
        return False


def _refused() -> str:
    """Make a map of one row, and forget it: root of a container may lack the capability."""
    try:
        os.close(bpf(_MAP_CREATE, struct.pack("=IIII", _ARRAY, 4, 4, 1).ljust(128, b"\0")))
    except OSError as error:
        if error.errno == errno.EPERM:
            return "BPF is not permitted (CAP_BPF or CAP_SYS_ADMIN is missing)"
        return str(error.strerror) if error.errno == errno.ENOSYS else f"the kernel refuses BPF: {error.strerror}"
    return ""


def _unbuilt() -> str:
    try:
        import ext_authz.datapath._datapath  # noqa: F401
    except ImportError as error:
        return f"the loader is not built: {error}"
    return ""
