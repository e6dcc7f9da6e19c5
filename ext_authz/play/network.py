# SPDX-License-Identifier: Apache-2.0
"""
A node and its workloads as network namespaces: one for the node, one for each workload, a veth pair between.

Nothing but our descriptors holds them. When we end, however we end, the namespaces go, and with them every link,
route, rule and attached program.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ext_authz.play.netns import CLONE_NEWNET, NoNamespace, inside

# What workloads send through: the same two addresses on the host side of every veth, as CNIs do it.
GATEWAY4, GATEWAY6 = "169.254.1.1", "fe80::1"
INTERFACE = "eth0"

_libc = ctypes.CDLL(None, use_errno=True)


class Space:
    """One network namespace, gone when it is closed and no process is left in it."""

    def __init__(self) -> None:
        self.descriptor = _new_namespace()
        try:
            self.ip(["link set lo up"])
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """A file by which every process of root finds the namespace while we live."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def inside(self) -> AbstractContextManager[None]:
        """The calling thread is in the namespace meanwhile."""
        return inside(self.descriptor)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside; mounts stay as they are, so bpffs is seen."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def ip(self, lines: Iterable[str]) -> None:
        """Give iproute2 these commands."""
        self.run(["ip", "-batch", "-"], "\n".join(lines))

    def run(self, argv: Sequence[str], text: str = "") -> str:
        """What a command inside says. Raises NoNamespace if it fails."""
        done = subprocess.run(self.command(argv), input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoNamespace(f"{argv[0]}: {done.stderr.strip()}")
        return done.stdout

    def sysctl(self, name: str, value: int | str) -> None:
        """Set a value below net, as in `ipv4.ip_forward`."""
        with self.inside():
            Path("/proc/sys/net", *name.split(".")).write_text(str(value))

    def socket(self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket of this namespace; it stays here wherever it is used."""
        with self.inside():
            return socket.socket(family, kind, protocol)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _new_namespace() -> int:
    """A descriptor of a fresh network namespace. The calling thread is back home afterwards."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # First see that there is a way back: not for who is root in a user namespace of his own only.
        for step in (lambda: _libc.setns(home, CLONE_NEWNET), lambda: _libc.unshare(CLONE_NEWNET)):
            if step():
                raise NoNamespace(f"no network namespace can be made: {os.strerror(ctypes.get_errno())}")
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            if _libc.setns(home, CLONE_NEWNET):
                # Never go on in the wrong namespace.
                os._exit(70)
    finally:
        os.close(home)


@dataclass(frozen=True)
class End:
    """A namespace that hangs on the node by a veth pair: a workload, or something outside."""

    name: str
    space: Space
    addresses: tuple[str, ...]
    veth: str
    ifindex: int  # host side
    peer_ifindex: int  # the end's own side
    mac: str
    host_mac: str

    def address(self, version: int = 4) -> str:
        """The first address of that IP version."""
        return next(address for address in self.addresses if ip_address(address).version == version)

    def socket(self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        return self.space.socket(family, kind, protocol)

    def command(self, argv: Sequence[str]) -> list[str]:
        return self.space.command(argv)


class Network:
    """A node that forwards between its ends. Close it, or use it as a context."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count(1)
        self.ends: dict[str, End] = {}
        self.node = Space()
        self._stack.callback(self.node.close)
        try:
            for name in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
                self.node.sysctl(name, 1)
            for name in ("ipv6.conf.all.accept_dad", "ipv6.conf.default.accept_dad"):
                self.node.sysctl(name, 0)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, name: str, *addresses: str) -> End:
        """Hang up a namespace with these addresses; the node routes them there, it routes everything to the node."""
        number = next(self._numbers)
        space = Space()
        self._stack.callback(space.close)
        veth, mac, host_mac = f"lxc{number}", _mac(2, number), _mac(6, number)
        self.node.ip(
            [
                f"link add {veth} address {host_mac} type veth peer name {INTERFACE} address {mac} netns {space.path}",
                f"address add {GATEWAY4}/32 dev {veth}",
                f"address add {GATEWAY6}/64 dev {veth} nodad",
                f"link set {veth} up",
            ]
        )
        space.sysctl("ipv6.conf.all.accept_dad", 0)
        space.sysctl(f"ipv6.conf.{INTERFACE}.accept_dad", 0)
        space.sysctl(f"ipv6.conf.{INTERFACE}.accept_ra", 0)
        plain = tuple(str(ip_address(address)) for address in addresses)
        space.ip(
            [
                *(f"address add {_host(address)} dev {INTERFACE}{_nodad(address)}" for address in plain),
                f"link set {INTERFACE} up",
                f"route add default via {GATEWAY4} dev {INTERFACE} onlink",
                f"route add ::/0 via {GATEWAY6} dev {INTERFACE}",
            ]
        )
        self.node.ip(f"route add {_host(address)} dev {veth}" for address in plain)
        with self.node.inside():
            ifindex = socket.if_nametoindex(veth)
        with space.inside():
            peer_ifindex = socket.if_nametoindex(INTERFACE)
        end = End(name, space, plain, veth, ifindex, peer_ifindex, mac, host_mac)
        self.ends[name] = end
        return end

    def remove(self, name: str) -> None:
        """Take an end away, as a workload that ends does."""
        end = self.ends.pop(name)
        self.node.ip([f"link del {end.veth}"])
        end.space.close()

    def close(self) -> None:
        self._stack.close()
        self.ends.clear()


def _mac(kind: int, number: int) -> str:
    """Locally administered; kind tells the sides of a pair apart."""
    return ":".join(f"{byte:02x}" for byte in (kind, 0x1D, 0, *number.to_bytes(3, "big")))


def _host(address: str) -> str:
    return f"{address}/{ip_address(address).max_prefixlen}"


def _nodad(address: str) -> str:
    return " nodad" if ":" in address else ""


@contextlib.contextmanager
def network(ends: Iterable[tuple[str, Sequence[str]]] = ()) -> Iterator[Network]:
    """A node with these ends by name and addresses."""
    with Network() as made:
        for name, addresses in ends:
            made.add(name, *addresses)
        yield made
