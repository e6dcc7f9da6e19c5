# SPDX-License-Identifier: Apache-2.0
"""
The bpffs of our own: whoever can open a pin can rewrite what is allowed, so nobody else may even look in.

A mount of ours, not /sys/fs/bpf: that one is 1777, everybody's, and vanishes inside `ip netns exec`, which mounts
/sys anew.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ext_authz.datapath.errors import MountError, Unsupported
from ext_authz.state import folder_problem

_MOUNTS, _FIRST_MOUNTS = Path("/proc/self/mountinfo"), Path("/proc/1/mountinfo")
_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_DETACH = 2
# What the mount calls its device, so that whoever cleans up knows whether to unmount.
_OURS = "idmesh"


@dataclass(frozen=True)
class Mount:
    """A checked bpffs. verify() says later whether the path still leads there."""

    root: Path
    device: int
    inode: int

    def verify(self) -> None:
        """
        Raises:
            MountError: Something else is mounted or lies there by now.
        """
        try:
            found = self.root.lstat()
        except OSError as error:
            raise MountError(f"{self.root}: {error.strerror}; the bpffs that was there is gone") from None
        if (found.st_dev, found.st_ino) != (self.device, self.inode):
            raise MountError(f"{self.root}: is another file system than the one that was opened")


def open_mount(root: Path) -> Mount:
    """
    Mount a bpffs there unless one is mounted, and check that it is ours alone.

    Raises:
        MountError: Its folder, owner or mode lets others in.
        Unsupported: This process may not mount, or the kernel has no bpffs.
    """
    # Of the real folder: a link on the way could be turned elsewhere later.
    root = root.parent.resolve() / root.name
    _make_folder(root)
    if kind_of(root) is None:
        _mount(root)
    return check_mount(root)


def check_mount(root: Path) -> Mount:
    """
    Raises:
        MountError: It is no bpffs, or others than its owner (this user) can enter it.
    """
    if (kind := kind_of(root)) != "bpf":
        raise MountError(f"{root}: no bpffs is mounted there" + (f", but {kind}" if kind else ""))
    found = root.lstat()
    mode = stat.S_IMODE(found.st_mode) & ~stat.S_ISVTX  # the kernel sets it on every bpffs
    if found.st_uid != os.geteuid():
        raise MountError(f"{root}: the bpffs belongs to user {found.st_uid}")
    if mode != 0o700:
        raise MountError(
            f"{root}: the bpffs has mode {mode:04o}, it must be 0700: whoever opens a pin can change what is allowed; "
            f"unmount it, or chmod 0700 if nobody else can have used it"
        )
    if found.st_dev == root.parent.stat().st_dev:
        raise MountError(f"{root}: is not the root of a mount")
    return Mount(root, found.st_dev, found.st_ino)


def close_mount(root: Path) -> None:
    """Unmount it if open_mount() mounted it; pins in it are gone with it. Its folder goes, too."""
    if _mounted(root) != ("bpf", _OURS):
        return
    if _libc().umount2(os.fsencode(root), _DETACH):
        number = ctypes.get_errno()
        raise MountError(f"{root}: cannot be unmounted: {os.strerror(number)}")
    try:
        root.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
            raise


def kind_of(root: Path) -> str | None:
    """Type of the file system that is mounted right there, topmost, or None."""
    found = _mounted(root)
    return found[0] if found else None


def is_private(root: Path) -> bool:
    """True if the host's first process does not see this file system: pins end with the mounts of this one then."""
    device = root.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _FIRST_MOUNTS.read_text().splitlines()
    except OSError:  # who may not look at it is not told
        return False
    return not any(line.split()[2] == number for line in lines)


def bpf_mounts() -> list[Path]:
    """Where a bpffs is mounted, whoever did it."""
    return sorted({place for place, kind, _ in _mounts() if kind == "bpf"})


def _mounted(root: Path) -> tuple[str, str] | None:
    """Type and device of the topmost mount there."""
    found = None
    for place, kind, device in _mounts():
        if place == root:
            found = kind, device
    return found


def _mounts() -> Iterator[tuple[Path, str, str]]:
    """Place, type and device of everything that is mounted, the lowest first."""
    for line in _MOUNTS.read_text().splitlines():
        words = line.split()
        kind, device = words[words.index("-") + 1 :][:2]
        yield Path(words[4].encode().decode("unicode_escape")), kind, device


def _make_folder(root: Path) -> None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MountError(f"{root}: {error.strerror}") from None
    if not stat.S_ISDIR(root.lstat().st_mode):
        raise MountError(f"{root}: is not a directory")
    # In sticky folders such as /tmp nobody else can rename what is ours.
    if (problem := folder_problem(root.parent)) and not root.parent.stat().st_mode & stat.S_ISVTX:
        raise MountError(problem)


def _mount(root: Path) -> None:
    arguments = (_OURS.encode(), os.fsencode(root), b"bpf", _NOSUID_NODEV_NOEXEC, b"mode=0700")
    if _libc().mount(*arguments):
        number = ctypes.get_errno()
        if number == errno.EPERM:
            raise Unsupported(f"{root}: mounting a bpffs is not permitted: CAP_SYS_ADMIN is missing")
        raise Unsupported(f"{root}: a bpffs cannot be mounted: {os.strerror(number)}")


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
    return libc
