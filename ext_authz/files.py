# SPDX-License-Identifier: Apache-2.0
"""Files that must be whole after a crash: a snapshot, the identities given so far."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path


def replace_file(path: Path, data: bytes | Sequence[bytes], mode: int = 0o600) -> None:
    """
    Write beside, sync, rename: a reader sees the old bytes or the new ones, also after a crash.

    Args:
        data: The content, or its parts in order: large ones need not be copied together.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        staged.unlink()
    handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines((data,) if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        with contextlib.suppress(OSError):
            staged.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
