# SPDX-License-Identifier: Apache-2.0
"""A worker of the ext_authz service for attacks on that door."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envoy_harness import ROOT, Node, setup_for, wait_until

from ext_authz.xds.setup import Door, Setup, Target


@dataclass
class Service:
    """One worker and where it listens."""

    socket: Path
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def service(node: Node, path: Path) -> Iterator[Service]:
    command = [sys.executable, "-m", "ext_authz.service.worker", "--state", str(node.state), "--listen", f"unix:{path}"]
    process = subprocess.Popen(command, env=dict(os.environ, PYTHONPATH=str(ROOT)), stderr=subprocess.DEVNULL)
    try:
        wait_until(path.exists, "the service")
        yield Service(path, process)
    finally:
        process.kill()
        process.wait()


def door_setup(door: Door, upstream: Target, node: Node, authz: Service, **wanted: object) -> Setup:
    """The same listener before either door."""
    if door == Door.MODULE:
        return setup_for(door, upstream, state=node.state, **wanted)
    return setup_for(door, upstream, authz=(Target(path=str(authz.socket)),), **wanted)
