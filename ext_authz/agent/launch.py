# SPDX-License-Identifier: Apache-2.0
"""
Starts a program as nobody's child: `python -m ext_authz.agent.launch FD CGROUP PROGRAM ARGUMENT...`.

Envoy asks the kernel to end it with its parent (PR_SET_PDEATHSIG; tried with 1.40). So that it outlives a killed
agent, its parent must be gone before it asks. Its process id is written to the descriptor FD. In CGROUP (a folder, or
empty: in ours) it is before it can open a socket, and without capabilities that only the agent needs.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS
_VERSION = 0x20080522  # of capget(2) with 64 capabilities
_AGENTS = 1 << 19 | 1 << 21  # CAP_SYS_PTRACE, CAP_SYS_ADMIN


def main(arguments: list[str]) -> int:
    report, cgroup, command = int(arguments[0]), arguments[1], arguments[2:]
    parent = os.getpid()
    child = os.fork()
    if child:
        os.write(report, f"{child}\n".encode())
        return 0
    os.close(report)
    os.setsid()
    while os.getppid() == parent:
        time.sleep(0.001)
    try:
        if cgroup:
            Path(cgroup, "cgroup.procs").write_text(f"{os.getpid()}\n")
            _give_up()
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{error.filename or command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _give_up() -> None:
    """
    What only the agent needs for the data path; whoever speaks with the world has none of it.

    Root gets everything back when it begins a program, unless it has said that it wants no new privileges.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    header, held = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
    refused = libc.capget(header, held)
    for at in range(3):  # effective, permitted, inheritable: the low half of each
        held[at] &= ~_AGENTS
    if refused or libc.capset(header, held):
        raise OSError(ctypes.get_errno(), "capabilities cannot be given up")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
