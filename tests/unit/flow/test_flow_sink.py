# SPDX-License-Identifier: Apache-2.0
"""Laws of the file of lines and of the clients' queues."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from ext_authz.flow.facts import End, Facts, Seen
from ext_authz.flow.hub import CLIENTS_MAX, KEPT_BYTES, QUEUE_BYTES, Hub, TooManyClients
from ext_authz.flow.sink import FileSink, make_sink, read_rotated, rotated


def lines(first: int, count: int) -> bytes:
    return b"".join(b'{"number":%d}\n' % number for number in range(first, first + count))


def test_no_line_is_parted_or_lost_by_rotation(tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    sink = FileSink(path, size_max=200, backups=100)
    for start in range(0, 400, 40):
        sink.write(lines(start, 40))
    sink.close()
    assert "".join(read_rotated(path, 100)).encode() == lines(0, 400)
    sizes = [rotated(path, number).stat().st_size for number in range(101) if rotated(path, number).exists()]
    assert len(sizes) > 5
    assert max(sizes) <= 200


def test_only_so_many_older_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    sink = FileSink(path, size_max=100, backups=5)
    for number in range(100):
        sink.write(lines(number, 5))
    sink.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["flows.json"] + [f"flows.json.{n}" for n in range(1, 6)]
    assert list(read_rotated(path))[-1] == '{"number":103}\n'


def test_a_line_longer_than_a_file_is_kept_whole(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "f", size_max=10, backups=3)
    sink.write(b"a" * 50 + b"\n" + b"b" * 50 + b"\n")
    sink.close()
    assert list(read_rotated(tmp_path / "f")) == ["a" * 50 + "\n", "b" * 50 + "\n"]


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "f"
    sink = FileSink(path)
    sink.write(b"1\n")
    path.rename(tmp_path / "moved")
    sink.write(b"2\n")
    path.unlink()
    sink.reopen()
    sink.write(b"3\n")
    sink.close()
    assert (path.read_bytes(), (tmp_path / "moved").read_bytes()) == (b"3\n", b"1\n")


def test_a_restarted_observer_appends(tmp_path: Path) -> None:
    for text in (b"1\n", b"2\n"):
        sink = FileSink(tmp_path / "f")
        sink.write(text)
        sink.close()
    assert (tmp_path / "f").read_bytes() == b"1\n2\n"


def test_the_file_is_the_owners_alone_and_no_link_is_followed(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "f")
    sink.write(b"1\n")
    sink.close()
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "f")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", "missing/f"):
        with pytest.raises(OSError):
            FileSink(tmp_path / name).write(b"2\n")
    assert (tmp_path / "f").read_bytes() == b"1\n"


def test_a_target_chooses_its_sink(tmp_path: Path) -> None:
    assert type(make_sink(None)).__name__ == "NoSink"
    assert type(make_sink("-")).__name__ == "StdoutSink"
    assert type(make_sink(str(tmp_path / "f"))).__name__ == "FileSink"


def seen(number: int, size: int = 0) -> Seen:
    return Seen(str(number).rjust(size), Facts("FORWARDED", End(1), End(2), (0, 0), "", 0, "", "", "", "module"))


def test_a_slow_client_loses_flows_and_is_told_how_many() -> None:
    async def scenario() -> None:
        hub = Hub()
        slow, quick = hub.follow(), hub.follow()
        size, each = 1 << 16, 16  # bytes of a line, lines of a batch
        fit = QUEUE_BYTES // size // each * each
        read, total = 0, fit + 5 * each
        for start in range(0, total, each):
            hub.publish([seen(number, size) for number in range(start, start + each)])
            read += len(await quick.next())
        hub.lose(7)
        assert quick.losses() == (7, 0)
        assert read == total
        assert slow.losses() == (7, total - fit)
        assert slow.losses() == (0, 0)
        assert hub.client_lost == total - fit
        got = 0
        while got < fit:
            got += len(await slow.next())
        assert got == fit

    asyncio.run(scenario())


def test_a_follower_ends_when_the_hub_closes_and_everything_was_read() -> None:
    async def scenario() -> None:
        hub = Hub()
        follower = hub.follow()
        hub.publish([seen(1)])
        hub.close()
        assert len(await follower.next()) == 1
        assert await follower.next() == ()

    asyncio.run(scenario())


def test_the_hub_keeps_the_newest_and_bounds_its_clients() -> None:
    async def scenario() -> None:
        hub = Hub(kept=10)
        hub.publish([seen(number) for number in range(25)])
        assert [each.line for each in hub.newest()] == [str(number) for number in range(15, 25)]
        hub.publish([seen(number, KEPT_BYTES // 3) for number in range(9)])
        assert len(hub.newest()) == 3
        followers = [hub.follow() for _ in range(CLIENTS_MAX)]
        with pytest.raises(TooManyClients):
            hub.follow()
        hub.leave(followers[0])
        hub.follow()

    asyncio.run(scenario())
