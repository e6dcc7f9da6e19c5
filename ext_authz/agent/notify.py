# SPDX-License-Identifier: Apache-2.0
"""
Tells systemd how the node is, if systemd asked.

Source: sd_notify(3).
"""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*lines: str) -> bool:
    """Send lines such as READY=1 to $NOTIFY_SOCKET. False if there is none."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
        end.connect(address)
        end.send("\n".join(lines).encode())
        return True
    return False


def watchdog_interval_s() -> float | None:
    """How often WATCHDOG=1 is due, or None."""
    text = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not text.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return max(0.05, int(text) / 1e6 / 2)
