# SPDX-License-Identifier: Apache-2.0
"""
Where the demo plays: one network namespace for the node, one for each workload, joined by veth pairs.

The process first moves itself into a node namespace of its own (with a user namespace around it when it is not
root), so the host's network is never touched and everything is gone when the processes are. Where the kernel
forbids that, workloads are loopback addresses, which anyone on the host could use: `Stage.authenticated` says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from ext_authz.play.netns import inside

INSIDE = "IDMESH_DEMO_INSIDE"  # set for the process that already lives in the node namespace

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def enter_node_namespace(argv: Sequence[str]) -> int | None:
    """
    Run `argv` again inside a node namespace and return its exit code; None where namespaces are not to be had.

    What ends us reaches the inner processes as SIGTERM (a helper that is interrupted would show its stack); they clean
    up, we only wait.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    wrap = [unshare, "--net", "--kill-child=SIGTERM", "--fork"]
    # Mounts of ours end with us, however we end.
    wrap += ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode != 0:
        return None
    child = subprocess.Popen([*wrap, *argv], env={**os.environ, INSIDE: "1"}, start_new_session=True)
    forward = {number: signal.signal(number, lambda *_: _end_group(child)) for number in _ENDING}
    try:
        code = child.wait()
        return code if code >= 0 else 128 - code  # as a shell would say it
    finally:
        for number, handler in forward.items():
            signal.signal(number, handler)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)


def interrupt_at_the_end() -> None:
    """Have SIGTERM and SIGHUP end us as SIGINT does, so that all is taken down; a second one is not heard."""

    def interrupt(*_: object) -> None:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in _ENDING:
        signal.signal(number, interrupt)


@dataclass
class Workload:
    """One workload: its address and, where namespaces are to be had, the process that holds its namespace."""

    name: str
    address: str
    holder: subprocess.Popen[bytes] | None = None
    namespace: int | None = None  # file descriptor

    def socket(self) -> socket.socket:
        """A TCP socket that lives in the workload's namespace and sends from its address."""
        # A socket stays in the namespace it was made in.
        with contextlib.nullcontext() if self.namespace is None else inside(self.namespace):
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.namespace is None:
            made.bind((self.address, 0))
        return made

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside the workload."""
        if self.holder is None:
            return list(argv)
        return ["nsenter", "--target", str(self.holder.pid), "--net", "--", *argv]


@dataclass
class Stage:
    """The node's address and the workloads; a context manager that takes everything down again."""

    authenticated: bool
    node: str
    workloads: dict[str, Workload] = field(default_factory=dict)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for workload in self.workloads.values():
            if workload.namespace is not None:
                os.close(workload.namespace)
            if workload.holder is not None:
                workload.holder.kill()
                workload.holder.wait()


def build(names: Sequence[str]) -> Stage:
    """Build the stage for these workloads: namespaces if this process runs in a node namespace, else loopback."""
    if os.environ.get(INSIDE) != "1":
        stage = Stage(authenticated=False, node="127.0.10.1")
        for number, name in enumerate(names):
            stage.workloads[name] = Workload(name, f"127.0.10.{10 + number}")
        return stage
    stage = Stage(authenticated=True, node="10.11.0.1")
    _ip("link", "set", "lo", "up")
    _ip("link", "add", "mesh0", "type", "bridge")
    _ip("address", "add", f"{stage.node}/24", "dev", "mesh0")
    _ip("link", "set", "mesh0", "up")
    try:
        for number, name in enumerate(names):
            stage.workloads[name] = _workload(name, number)
    except BaseException:
        stage.__exit__()
        raise
    return stage


def _workload(name: str, number: int) -> Workload:
    address = f"10.11.0.{10 + number}"
    holder = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", "import sys,time\nprint(flush=True)\nsys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()  # the namespace exists once the inner program speaks
    namespace = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY)
    workload = Workload(name, address, holder, namespace)
    host = f"veth{number}"
    _ip("link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
    _ip("link", "set", host, "master", "mesh0")
    _ip("link", "set", host, "up")
    for argv in (
        ["ip", "link", "set", "lo", "up"],
        ["ip", "address", "add", f"{address}/24", "dev", "eth0"],
        ["ip", "link", "set", "eth0", "up"],
    ):
        subprocess.run(workload.command(argv), check=True, capture_output=True)
    return workload


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
