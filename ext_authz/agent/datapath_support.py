# SPDX-License-Identifier: Apache-2.0
"""Whether this host can have a data path in the kernel at all, asked without changing anything."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from pathlib import Path

BTF = Path("/sys/kernel/btf/vmlinux")
_BPF_CALLS = {"x86_64": 321, "aarch64": 280}
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
    number = _BPF_CALLS.get(platform.machine())
    if number is None:
        return f"not tried on {platform.machine()}"
    words = (ctypes.c_uint32 * 32)(_ARRAY, 4, 4, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.syscall(number, _MAP_CREATE, words, ctypes.sizeof(words))
    if handle >= 0:
        os.close(handle)
        return ""
    code = ctypes.get_errno()
    if code == errno.EPERM:
        return "BPF is not permitted (CAP_BPF or CAP_SYS_ADMIN is missing)"
    return f"the kernel refuses BPF: {os.strerror(code)}"


def _unbuilt() -> str:
    try:
        import ext_authz.datapath._datapath  # noqa: F401
    except ImportError as error:
        return f"the loader is not built: {error}"
    return ""
