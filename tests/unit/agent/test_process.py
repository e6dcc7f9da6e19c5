# SPDX-License-Identifier: Apache-2.0
"""Laws of processes that are held, recorded and found again, and of waiting before the next start."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.backoff import CALM_S, Backoff
from ext_authz.process import (
    Held,
    Wish,
    command_line,
    find_processes,
    fingerprint,
    package_fingerprint,
    start_child,
    start_detached,
    start_time,
)

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)", "idmesh-test-process")


@pytest.fixture
def child() -> Iterator[Held]:
    made = start_child(SLEEP)
    yield made
    made.end(5.0)
    made.close()


def test_a_held_process_is_running_until_it_ended(child: Held) -> None:
    assert child.running()
    child.send(signal.SIGKILL)
    assert child.wait(5.0)
    assert not child.running()
    assert child.status == -signal.SIGKILL
    assert start_time(child.pid) == 0
    child.send(signal.SIGTERM)  # to nobody


def test_a_process_is_held_by_a_high_descriptor_too(child: Held) -> None:
    """Of whoever holds thousands of them."""
    low, high = child._handle, 2000
    try:
        child._handle = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, high)
    except OSError:
        pytest.skip("this process may not have so many descriptors")
    os.close(low)
    assert child.running()
    child.send(signal.SIGKILL)
    assert child.wait(5.0)


def test_end_is_certain(child: Held) -> None:
    child.send(signal.SIGSTOP)
    child.end(0.1)
    assert not child.running()


def test_a_closed_one_is_over(child: Held) -> None:
    child.send(signal.SIGKILL)
    child.wait(5.0)
    child.close()
    child.close()
    assert not child.running()


def test_a_detached_program_is_not_our_child() -> None:
    held = start_detached(SLEEP, None)
    try:
        with pytest.raises(ChildProcessError):
            os.waitpid(held.pid, os.WNOHANG)
        assert held.running()
    finally:
        held.end(5.0)
        held.close()


def test_a_program_that_cannot_be_started_ends_and_is_seen(tmp_path: Path) -> None:
    held = start_detached([str(tmp_path / "missing")], None)
    assert held.wait(5.0)
    held.close()


# ---- records ----


def test_what_was_recorded_is_found_again(child: Held) -> None:
    wish = Wish(SLEEP, "f")
    assert wish.fits(wish.record(child.pid))


@pytest.mark.parametrize(
    "change",
    [{"command": ["other"]}, {"files": "g"}, {"start": 1}, {"pid": 1 << 22}, {"pid": "1"}, {"pid": None}],
)
def test_any_difference_is_another_process(child: Held, change: dict[str, object]) -> None:
    wish = Wish(SLEEP, "f")
    assert not wish.fits(wish.record(child.pid) | change)


@pytest.mark.parametrize("record", [None, [], "x", {}, {"pid": 1}])
def test_nonsense_on_record_is_nobody(record: object) -> None:
    assert not Wish(SLEEP, "f").fits(record)


def test_a_dead_process_does_not_fit_though_nobody_collected_it() -> None:
    process = subprocess.Popen(SLEEP)
    wish = Wish(SLEEP, "f")
    record = wish.record(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not wish.fits(record)
    process.wait()


def test_processes_are_found_by_their_words(child: Held) -> None:
    assert child.pid in find_processes(lambda words: b"idmesh-test-process" in words)
    assert os.getpid() not in find_processes(lambda words: True)
    assert command_line(1 << 22) == []


def test_a_fingerprint_tells_files_and_contents_apart(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("1")
    before = fingerprint([file], b"x")
    assert fingerprint([file], b"x") == before
    assert fingerprint([file], b"y") != before
    assert fingerprint([tmp_path / "b"], b"x") != before
    file.with_name("c").write_text("1")
    file.with_name("c").replace(file)
    assert fingerprint([file], b"x") != before
    assert package_fingerprint("service") != package_fingerprint("flow")


# ---- waiting ----


def test_waiting_doubles_up_to_a_limit_and_begins_anew_after_calm() -> None:
    backoff = Backoff(0.1, 0.5)
    waits = []
    for _ in range(5):
        backoff.started()
        waits.append(backoff.ended())
    assert waits == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert not backoff.due
    assert not backoff.calm
    backoff.started()
    backoff._started -= CALM_S + 1
    assert backoff.calm
    assert backoff.ended() == 0.0
    assert backoff.due
    assert backoff.deaths == 6


def test_one_death_is_no_row_of_them() -> None:
    backoff = Backoff(0.01)
    backoff.started()
    backoff.ended()
    assert backoff.calm
    until = time.monotonic() + 5
    while not backoff.due:
        assert time.monotonic() < until
    backoff.started()
    backoff.ended()
    assert not backoff.calm
