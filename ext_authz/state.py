# SPDX-License-Identifier: Apache-2.0
"""
The state directory: where a node keeps its snapshot, its readers' reports and what it remembers.

Everything in it is the node's alone (0700, files 0600: a snapshot holds the values of secrets), and every file is
replaced by rename, so that a reader sees the old one or the new one and nothing between.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SNAPSHOT_MAX = 4 << 30
_LOCK_S = 1.0


class StateError(Exception):
    """The state directory cannot be used as it is."""


def default_state() -> Path:
    """/run/idmesh for root, else $XDG_RUNTIME_DIR/idmesh (or a directory of the user's own in /tmp)."""
    if os.geteuid() == 0:
        return Path("/run/idmesh")
    base = os.environ.get("XDG_RUNTIME_DIR")
    # No folder between: who made one in /tmp first could put a state directory and sockets of his own into it.
    return Path(base) / "idmesh" if base else Path(f"/tmp/idmesh-{os.geteuid()}")


@dataclass(frozen=True, slots=True)
class State:
    """Names of everything in the directory."""

    root: Path

    @property
    def snapshot(self) -> Path:
        return self.root / "snapshot"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def readers(self) -> Path:
        return self.root / "readers"

    @property
    def identities(self) -> Path:
        return self.root / "identities.json"

    @property
    def kept(self) -> Path:
        return self.root / "kept"

    @property
    def applied(self) -> Path:
        return self.root / "applied"

    @property
    def attached(self) -> Path:
        return self.root / "attached"

    @property
    def datapath(self) -> Path:
        """What the data path keeps: its bpffs, what it changed on this host, its page."""
        return self.root / "datapath"

    @property
    def datapath_pins(self) -> Path:
        """Made when the data path is set up for the first time, gone after a clean-up."""
        return self.datapath / "bpf"

    @property
    def has_datapath(self) -> bool:
        """
        Something of ours stands in the kernel. The folder alone may be that of an earlier boot, and an empty file
        system one that a service manager mounts before us.
        """
        return os.path.ismount(self.datapath_pins) and os.path.isdir(self.datapath_pins / "sets")

    @property
    def admin(self) -> Path:
        return self.root / "admin.sock"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def prepare(self) -> None:
        """
        Make the directories.

        Raises:
            StateError: One is somebody else's, or others may write to it.
        """
        for folder in (self.root, self.readers, self.kept, self.applied, self.attached, self.datapath):
            # Root's directory can be entered by others: the read socket's group must reach it, whatever the umask.
            mode = 0o755 if folder == self.root and os.geteuid() == 0 else 0o700
            if not folder.exists():
                folder.mkdir(mode=mode, parents=True, exist_ok=True)
                folder.chmod(mode)
            problem = folder_problem(folder)
            if problem:
                raise StateError(problem)

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """
        Hold the directory: one node at a time.

        Raises:
            StateError: Another process holds it.
        """
        handle = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if not _lock(handle):
                raise StateError(f"{self.root}: another node runs with this state directory")
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(handle)

    def running(self) -> int | None:
        """
        Process id of the node that holds the directory.

        Raises:
            PermissionError: Only another user could say.
        """
        try:
            handle = os.open(self.lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except PermissionError:
            raise
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            words = os.pread(handle, 32, 0).split()
            return int(words[0]) if words else None
        finally:
            os.close(handle)


def _lock(handle: int) -> bool:
    """Tried for a moment: who asks whether a node runs holds the lock while he looks."""
    until = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
        time.sleep(0.001)


def folder_problem(folder: Path) -> str | None:
    """Why a directory is not safe to keep state in, or None."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder}: is not a directory"
    if found.st_uid not in (os.geteuid(), 0):
        return f"{folder}: belongs to another user ({found.st_uid})"
    if found.st_mode & 0o022:
        return f"{folder}: others may write to it (mode {found.st_mode & 0o7777:04o})"
    return None


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file by rename, mode 0600."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(staged, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(staged)
        raise


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, separators=(",", ":")).encode() + b"\n")


def read_json(path: Path) -> Any:
    """The value, or None if the file is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def read_owned(path: Path, limit: int = SNAPSHOT_MAX) -> bytes:
    """
    Bytes of a regular file that only its owner (us, or root) may write.

    Raises:
        OSError: Missing, or of another kind, owner or mode.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path}: is no regular file")
        if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
            raise OSError(f"{path}: others than its owner may write it (mode {found.st_mode & 0o7777:04o})")
        if found.st_size > limit:
            raise OSError(f"{path}: too large")
        return file.read()
