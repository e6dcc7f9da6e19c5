# SPDX-License-Identifier: Apache-2.0
"""
What tests may need of a machine. A missing need skips visibly where people work and fails where CI decides.

Markers: `needs_envoy`, an Envoy binary and the built module; `needs_namespaces`, network namespaces of our own (root
or user namespaces); `needs_root`, root itself; `needs_loader`, the loader of the data path (libbpf).
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Tests import each other's helpers by their full names (tests.oracle), from wherever pytest was started.
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def missing(reason: str) -> None:
    """Skip, or fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI lacks: {reason}", pytrace=False)
    pytest.skip(reason)


@functools.cache
def _lacks_root() -> str:
    return "" if os.geteuid() == 0 else "not root"


@functools.cache
def _lacks_namespaces() -> str:
    for wrap in (["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"]):
        try:
            if subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode == 0:
                return ""
        except FileNotFoundError:
            return "unshare is missing (package util-linux)"
    return "no network namespaces: neither root nor user namespaces"


@functools.cache
def _lacks_envoy() -> str:
    from ext_authz.envoy_binary import EnvoyNotFound, find_envoy

    try:
        find_envoy()
    except EnvoyNotFound as error:
        return str(error)
    built = ROOT / "ext_authz/native/libidmesh_envoy.so"
    return "" if built.exists() else "the Envoy module is not built: make setup"


@functools.cache
def _lacks_loader() -> str:
    built = list((ROOT / "ext_authz/datapath").glob("_datapath*.so"))
    return "" if built else "the loader of the data path is not built: libbpf is missing"


NEEDS: dict[str, tuple[Callable[[], str], str]] = {
    "needs_root": (_lacks_root, "runs as root only"),
    "needs_namespaces": (_lacks_namespaces, "needs network namespaces of its own"),
    "needs_envoy": (_lacks_envoy, "needs a real Envoy and the built module"),
    "needs_loader": (_lacks_loader, "needs the loader of the data path"),
}


def pytest_configure(config: pytest.Config) -> None:
    for name, (_, text) in NEEDS.items():
        config.addinivalue_line("markers", f"{name}: {text}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, (lacks, _) in NEEDS.items():
        if item.get_closest_marker(name) is not None and (reason := lacks()):
            missing(reason)


@pytest.fixture(autouse=True, scope="session")
def _patient_ports() -> Iterator[None]:
    """
    Wait where a client's address has no free port left.

    Workloads are addresses of loopback, and what earlier tests closed holds their ports for a minute.
    """
    connect = socket.create_connection

    def patient(*args: Any, **kwargs: Any) -> socket.socket:
        for _ in range(60):
            try:
                return connect(*args, **kwargs)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                time.sleep(1)
        return connect(*args, **kwargs)

    socket.create_connection = patient  # type: ignore[assignment]
    yield
    socket.create_connection = connect
