# SPDX-License-Identifier: Apache-2.0
"""A file that is replaced again and again: whole, told apart by its times, and never changed under who reads it."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from ext_authz.inotify import MOVED_TO, Inotify
from ext_authz.spare import SpareFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "snapshot"


def spare(path: Path) -> Path:
    return path.with_name(".snapshot.spare")


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_each_version_is_whole_whatever_the_last_ones_held(path: Path) -> None:
    source, file = random.Random(1), SpareFile(path)
    for _ in range(50):
        parts = [source.randbytes(source.choice((0, 1, 70_000))) for _ in range(source.randrange(5))]
        file.replace(parts)
        assert path.read_bytes() == b"".join(parts)


def test_the_version_before_last_is_used_again(path: Path) -> None:
    file, seen = SpareFile(path), []
    for number in range(6):
        file.replace([b"%d" % number])
        seen.append(inode(path))
    if seen[0] != seen[2]:
        pytest.skip("no leases or no exchange of names on this file system")
    assert seen[::2] == seen[:1] * 3
    assert seen[1::2] == seen[1:2] * 3


def test_who_has_a_version_open_reads_that_version(path: Path) -> None:
    file = SpareFile(path)
    file.replace([b"first" * 1000])
    with path.open("rb") as held:
        for number in range(5):
            file.replace([b"%d" % number * 5000])
        assert held.read() == b"first" * 1000


def test_versions_of_one_size_have_times_of_their_own(path: Path) -> None:
    file, seen = SpareFile(path), set()
    for _ in range(100):
        file.replace([b"same size"])
        found = path.stat()
        seen.add((found.st_ino, found.st_mtime_ns))
    assert len(seen) == 100


def test_who_watches_the_folder_is_told_of_each_version(path: Path) -> None:
    file, events = SpareFile(path), Inotify()
    events.watch(str(path.parent), MOVED_TO)
    for _ in range(4):
        file.replace([b"x"])
        assert path.name in {change.name for change in events.read()}
    events.close()


def test_versions_are_private(path: Path) -> None:
    before = os.umask(0)
    try:
        file = SpareFile(path)
        for _ in range(3):
            file.replace([b"secret"])
    finally:
        os.umask(before)
    assert {stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()} == {0o600}


def test_a_spare_that_is_no_file_of_ours_alone_is_not_written_to(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    other.chmod(0o600)
    file = SpareFile(path)
    for plant in (
        lambda: spare(path).symlink_to(other),
        lambda: os.link(other, spare(path)),
        lambda: _open_to_all(path),
    ):
        file.replace([b"one"])
        spare(path).unlink(missing_ok=True)
        plant()
        file.replace([b"two"])
        assert path.read_bytes() == b"two"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not path.is_symlink()
        assert other.read_bytes() == b"precious"


def _open_to_all(path: Path) -> None:
    spare(path).write_bytes(b"")
    spare(path).chmod(0o666)


def test_what_could_not_be_written_leaves_the_last_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SpareFile(path)
    file.replace([b"good"])
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: len(data) - 1)
    with pytest.raises(OSError, match="whole"):
        file.replace([b"more"])
    assert path.read_bytes() == b"good"


def test_nothing_of_an_earlier_version_stays_after_a_rest(path: Path) -> None:
    file = SpareFile(path)
    for content in (b"one", b"two"):
        file.replace([content])
    file.drop()
    assert [found.name for found in path.parent.iterdir()] == ["snapshot"]


def test_who_only_looks_leaves_the_spare_alone(path: Path) -> None:
    file = SpareFile(path)
    for content in (b"one", b"two"):
        file.replace([content])
    before = inode(spare(path))
    SpareFile(path)
    file.replace([b"three"])
    assert before in (inode(path), inode(spare(path)))


def test_a_file_system_without_exchange_gets_new_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ext_authz.spare._libc", object())
    file = SpareFile(path)
    for content in (b"one", b"two"):
        file.replace([content])
        assert path.read_bytes() == content


def test_what_the_kernel_takes_bit_by_bit_is_written_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no more than 2 GiB at once."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:1000], at))
    parts = [random.Random(1).randbytes(size) for size in (2500, 0, 1000, 1)]
    SpareFile(path).replace(parts)
    assert path.read_bytes() == b"".join(parts)


def test_a_part_that_stays_is_not_written_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, seen, sizes, pwrite = SpareFile(path), list[int](), list[int](), os.pwrite
    stays, padding = b"s" * 5000, b""

    def written(handle: int, data: bytes, at: int) -> int:
        sizes.append(len(data))
        return pwrite(handle, data, at)

    monkeypatch.setattr(os, "pwrite", written)
    for number in range(6):
        head, last = b"%08d" % number, bytes([number]) * (100 + number)
        sizes.clear()
        file.replace((head, padding, stays, padding, last))
        assert path.read_bytes() == head + stays + last
        seen.append(inode(path))
    if seen[-1] != seen[-3]:
        pytest.skip("no leases or no exchange of names on this file system")
    assert sizes == [8, 105]


def test_a_part_that_has_another_place_is_written_there(path: Path) -> None:
    source, file, parts = random.Random(7), SpareFile(path), [bytes([n]) * (n % 5 * 300) for n in range(12)]
    for _ in range(300):
        chosen = [source.choice(parts) for _ in range(source.randrange(1, 6))]
        file.replace(chosen)
        assert path.read_bytes() == b"".join(chosen)


def test_a_spare_that_somebody_changed_is_written_whole(path: Path) -> None:
    file, stays = SpareFile(path), b"s" * 5000
    for number in range(3):
        file.replace((b"%08d" % number, stays))
    if spare(path).exists():
        spare(path).write_bytes(bytes(5008))
    file.replace((b"%08d" % 3, stays))
    assert path.read_bytes() == b"00000003" + stays
