# SPDX-License-Identifier: Apache-2.0
"""
Processes that outlive whoever started them: held by pidfd, found again by a record, told apart from reused numbers.

A record says with what a process was started: its command and the files it runs. Who finds the same wish on record,
and the process alive, adopts it; then nothing that it holds (connections, a snapshot) is lost by a restart.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Held:
    """One process, child or not; its number cannot come to mean another as long as it is held."""

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        """
        Raises:
            OSError: It is gone.
        """
        self.pid = pid
        self._child = child
        self._handle = os.pidfd_open(pid)
        self._ended = False

    @property
    def status(self) -> int | None:
        """How it ended, where that is ours to know: a child's exit code, or the negative number of a signal."""
        return self._child.returncode if self._child else None

    def running(self) -> bool:
        return not self.wait(0.0)

    def wait(self, timeout_s: float) -> bool:
        """True if it has ended."""
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile, in another thread
            if not self._ended and self._has_ended(timeout_s):
                self._ended = True
                self._collect()
        return self._ended

    def _has_ended(self, timeout_s: float) -> bool:
        """By poll, not select: that knows no descriptor from 1024 on."""
        poller = select.poll()
        poller.register(self._handle, select.POLLIN)
        return bool(poller.poll(1000 * timeout_s))

    def _collect(self) -> None:
        if self._child:
            self._child.wait()
            return
        with contextlib.suppress(ChildProcessError):  # ours after all, if we are the one who adopts orphans
            os.waitpid(self.pid, os.WNOHANG)

    def send(self, number: signal.Signals) -> None:
        if self._ended:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._handle, number)

    def end(self, timeout_s: float) -> None:
        """Ask it to end; end it after the time."""
        self.send(signal.SIGTERM)
        if not self.wait(timeout_s):
            self.send(signal.SIGKILL)
            self.wait(5.0)

    def close(self) -> None:
        handle, self._handle, self._ended = self._handle, -1, True
        if handle >= 0:
            os.close(handle)


def start_child(command: Sequence[str], *, stdout: int | None = None) -> Held:
    """
    Start a program in a session of its own. It is our child, and outlives us.

    Raises:
        OSError: It could not be started.
    """
    child = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=stdout, start_new_session=True)
    return Held(child.pid, child)


def start_detached(command: Sequence[str], environment: Mapping[str, str] | None, cgroup: Path | None = None) -> Held:
    """
    Start a program that is no child of ours, for one that would end with its parent; see agent/launch.py.

    Args:
        cgroup: Where it runs; None: where we do.

    Raises:
        OSError: It could not be started, or ended at once.
    """
    read, write = os.pipe()
    try:
        words = [sys.executable, "-m", "ext_authz.agent.launch", str(write), str(cgroup or ""), *command]
        launcher = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=environment, pass_fds=(write,))
    finally:
        os.close(write)
    with open(read, encoding="ascii") as report:
        said = report.read().strip()
    launcher.wait()
    if not said:
        raise OSError("could not be started")
    return Held(int(said))


@dataclass(frozen=True, slots=True)
class Wish:
    """What shall run. Two are equal only if whoever runs the one need not be replaced by the other."""

    command: tuple[str, ...]
    files: str  # fingerprint of the programs and files it was started from

    def record(self, pid: int) -> dict[str, Any]:
        """To be kept, so that a later node finds the process."""
        return {"pid": pid, "start": start_time(pid), "command": list(self.command), "files": self.files}

    def fits(self, record: Any) -> bool:
        """True if the record is of such a process, and it runs."""
        if not isinstance(record, dict) or not isinstance(record.get("pid"), int):
            return False
        same = record.get("command") == list(self.command) and record.get("files") == self.files
        started = start_time(record["pid"])
        return same and started > 0 and started == record.get("start")


def start_time(pid: int) -> int:
    """When a process was started, in ticks since boot; 0 if it is gone (also: a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    words = text.rpartition(")")[2].split()
    return 0 if len(words) < 20 or words[0] in "ZX" else int(words[19])


def fingerprint(paths: Iterable[Path], *contents: bytes) -> str:
    """Of files by name, place, size and time; of contents by what they are."""
    summed = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            summed.update(f"{path}\0missing\n".encode("utf-8", "surrogateescape"))
            continue
        said = f"{path}\0{found.st_dev},{found.st_ino},{found.st_size},{found.st_mtime_ns}\n"
        summed.update(said.encode("utf-8", "surrogateescape"))
    for content in contents:
        summed.update(hashlib.blake2b(content).digest())
    return summed.hexdigest()


def package_fingerprint(*folders: str) -> str:
    """Of the code in these folders of our package: equal if a process started now would run the same."""
    root = Path(__file__).resolve().parent
    files = sorted(root.glob("*.py"))
    for folder in folders:
        files += sorted(path for path in (root / folder).rglob("*") if path.suffix in (".py", ".so"))
    return fingerprint([Path(sys.executable), *files])


def find_processes(ours: Callable[[list[bytes]], bool]) -> list[int]:
    """
    Processes of our user and PID namespace whose command line passes; who is between two programs may be missed.

    A container without a user namespace of its own runs with our user id too, and calls itself what it likes.
    """
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            words = command_line(int(name))
            if words and ours(words):
                found.append(int(name))
    return sorted(found)


def command_line(pid: int) -> list[bytes]:
    """Empty: gone, of another user, or in a container."""
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid() or not _in_our_namespace(pid):
            return []
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def _in_our_namespace(pid: int) -> bool:
    """Of PIDs. What root may not look at has capabilities that a child of ours has not."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/pid"), os.stat("/proc/self/ns/pid"))
    except PermissionError:
        return os.geteuid() != 0
