# SPDX-License-Identifier: Apache-2.0
"""A worker of the gRPC service for tests with Envoy in front of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envoy_harness import ROOT, Node, wait_until

RULES = (
    "[{method: GET, path: '/public/.*'}, {method: POST, path: '/pkg.Service/Call'}, {method: POST, path: /upload},"
    " {path: /add, headerMatches: [{name: X-Env, value: prod, mismatch: ADD}]},"
    " {path: /replace, headerMatches: [{name: X-Env, value: prod, mismatch: REPLACE}]},"
    " {path: /delete, headerMatches: [{name: X-Env, value: prod, mismatch: DELETE}]}]"
)


@dataclass
class Service:
    """One worker process and what it serves."""

    node: Node
    socket: Path
    process: subprocess.Popen[bytes]

    def hang(self) -> None:
        """Stop it, every thread, until SIGCONT. The signal alone stops a thread only when that thread gets to it."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)


@contextlib.contextmanager
def worker(node: Node, path: Path, *words: str) -> Iterator[Service]:
    """A worker that listens at `path` with the node's snapshot in force."""
    (node.state / "readers").mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "ext_authz.service.worker", "--state", str(node.state), "--listen", f"unix:{path}"]
    process = subprocess.Popen([*command, *words], env=dict(os.environ, PYTHONPATH=str(ROOT)))
    try:
        wait_until(lambda: (path.exists() and bool(node.report())) or process.poll() is not None, "the service")
        assert process.poll() is None
        yield Service(node, path, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
