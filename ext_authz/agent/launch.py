# SPDX-License-Identifier: Apache-2.0
"""
Starts a program as nobody's child: `python -m ext_authz.agent.launch FD CGROUP PROGRAM ARGUMENT...`.

Envoy asks the kernel to end it with its parent (PR_SET_PDEATHSIG; tried with 1.40). So that it outlives a killed
agent, its parent must be gone before it asks. Its process id is written to the descriptor FD. In CGROUP (a folder, or
empty: in ours) it is before it can open a socket. Capabilities that only the agent needs it never has.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ext_authz.privileges import OF_AGENT, give_up


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
        give_up(OF_AGENT)
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{error.filename or command[0]}: {error.strerror}\n".encode())
    os._exit(127)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
