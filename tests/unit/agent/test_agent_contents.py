# SPDX-License-Identifier: Apache-2.0
"""Laws of the contents that are remembered: never older than the file."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ext_authz.agent.contents import FileCache
from ext_authz.model.types import PolicyError


def settled(path: Path, content: bytes) -> None:
    """Written, and left alone for long enough: times cannot be set back, so this waits for the clock."""
    path.write_bytes(content)
    while time.time_ns() - path.stat().st_ctime_ns < 150_000_000:
        time.sleep(0.01)


def test_a_settled_file_is_read_once_and_again_when_it_is_another(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.yaml", FileCache()
    settled(path, b"one")
    assert cache.read(str(path)) is cache.read(str(path))
    (tmp_path / "b").write_bytes(b"two")
    os.replace(tmp_path / "b", path)
    assert cache.read(str(path)) == b"two"


def test_a_change_that_sets_size_and_time_back_is_seen(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.yaml", FileCache()
    settled(path, b"one")
    before = path.stat()
    assert cache.read(str(path)) == b"one"
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.read(str(path)) == b"two"


def test_a_file_written_this_moment_is_not_believed_unchanged(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.yaml", FileCache()
    path.write_bytes(b"one")
    cache.read(str(path))
    assert not cache._known


def test_what_cannot_be_read_is_an_error_each_time(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.yaml", FileCache()
    settled(path, b"one")
    assert cache.read(str(path)) == b"one"
    path.unlink()
    assert isinstance(cache.read(str(path)), PolicyError)
    cache.forget(())
    assert not cache._known
