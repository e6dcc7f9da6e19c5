# SPDX-License-Identifier: Apache-2.0
"""
What only the agent and its data path need, given up by every process beside them: whoever reads what others wrote, or
speaks with the world, has none of it.

Source: capabilities(7), capset(2); numbers from include/uapi/linux/capability.h
"""

from __future__ import annotations

import ctypes
import os

_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS
_VERSION = 0x20080522  # of capget(2) with 64 capabilities
_NET_ADMIN, _SYS_PTRACE, _SYS_ADMIN, _BPF = 12, 19, 21, 39
# Envoy needs the others: its door reads pinned maps, its sockets are transparent and carry marks.
OF_AGENT = 1 << _SYS_PTRACE | 1 << _SYS_ADMIN
OF_DATA_PATH = OF_AGENT | 1 << _NET_ADMIN | 1 << _BPF


def give_up(capabilities: int) -> None:
    """
    Of the calling thread, and of what it begins from now on; nothing changes for whoever has none of them.

    Root gets everything back when it begins a program, unless it has said that it wants no new privileges.

    Raises:
        OSError: They are kept.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, held):
        raise _refused()
    words = (capabilities & 0xFFFFFFFF, capabilities >> 32)
    if not any(held[at] & words[at // 3] for at in range(6)):
        return
    for at in range(6):  # effective, permitted, inheritable: the low halves, then the high ones
        held[at] &= ~words[at // 3]
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.capset(header, held):
        raise _refused()


def _refused() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"capabilities cannot be given up: {os.strerror(number)}")
