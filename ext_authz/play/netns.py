# SPDX-License-Identifier: Apache-2.0
"""
Network namespaces of our own: sockets and processes in them, gone when their holder is.

A namespace is held by a small process that ends with ours. Sockets are made by moving the calling thread inside for
the moment of making; a socket stays where it was made.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from ipaddress import ip_address

CLONE_NEWNET = 0x40000000
# Set for a process that already runs inside a user namespace of its own.
INSIDE = "IDMESH_TEST_INSIDE"
_HOLDER = "import sys; print(flush=True); sys.stdin.read()"

_libc = ctypes.CDLL(None, use_errno=True)


class NoNamespace(Exception):
    """This system lets us have no network namespace; the message says what is missing."""


def ensure_privileges() -> None:
    """
    Become able to make network namespaces: root is; anybody else starts this process again in a user namespace.

    Raises:
        NoNamespace: Neither is possible.
    """
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            raise NoNamespace(f"{tool} is missing (packages util-linux and iproute2)")
    if _works("unshare", "--net"):
        return
    wrap = ["unshare", "--user", "--map-root-user", "--net"]
    if os.environ.get(INSIDE) or not _works(*wrap):
        raise NoNamespace("neither root nor user namespaces: no network namespace can be made")
    os.environ[INSIDE] = "1"
    sys.stdout.flush()
    os.execvp(wrap[0], [*wrap, "--", sys.executable, "-m", "ext_authz.cli", *sys.argv[1:]])


def _works(*words: str) -> bool:
    return subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0


class Namespace:
    """One network namespace with a loopback device that owns every address we want."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--", sys.executable, "-c", _HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            raise NoNamespace("the process that should hold a network namespace ended at once")
        self._descriptor = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._ip(["link set lo up"])

    def add_addresses(self, addresses: Iterable[str]) -> None:
        """Give the loopback device these addresses."""
        known = {"127.0.0.1", "::1"}
        lines = [
            f"address add {address}/{ip_address(address).max_prefixlen} dev lo{' nodad' if ':' in address else ''}"
            for address in dict.fromkeys(addresses)
            if address not in known
        ]
        if lines:
            self._ip(lines)

    def _ip(self, lines: Sequence[str]) -> None:
        done = subprocess.run(
            self.command(["ip", "-batch", "-"]), input="\n".join(lines), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NoNamespace(f"ip: {done.stderr.strip()}")

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside."""
        return ["nsenter", f"--target={self._holder.pid}", "--net", "--", *argv]

    def inside(self) -> AbstractContextManager[None]:
        """The calling thread is in the namespace meanwhile."""
        return inside(self._descriptor)

    def socket(self, family: int) -> socket.socket:
        with self.inside():
            return socket.socket(family, socket.SOCK_STREAM)

    def close(self) -> None:
        os.close(self._descriptor)
        self._holder.kill()
        self._holder.wait()


@contextlib.contextmanager
def inside(descriptor: int) -> Iterator[None]:
    """The calling thread is in the network namespace of this file descriptor meanwhile."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(descriptor)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
