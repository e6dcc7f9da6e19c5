# SPDX-License-Identifier: Apache-2.0
"""Laws of the worker processes together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checks import allowed, request, snapshot
from service_run import Client, environment, page, publish, wait_until

from ext_authz.service.listen import AddressError, parse_address
from ext_authz.service.pool import Pool, is_worker
from ext_authz.state import State


@pytest.fixture
def pool(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    publish(state, snapshot())
    made = Pool(state, parse_address(f"unix:{tmp_path}/a.sock"), 2)
    made.start()
    yield made
    made.stop()


def client_of(tmp_path: Path, index: int) -> Client:
    return Client(f"unix:{tmp_path}/a.sock.{index}")


def test_each_worker_has_an_address_of_its_own(pool: Pool, tmp_path: Path) -> None:
    for index in range(2):
        assert allowed(client_of(tmp_path, index).check(request()))


def test_a_dead_worker_is_replaced_at_its_address(pool: Pool, tmp_path: Path) -> None:
    killed = pool.processes()[0]
    os.kill(killed, signal.SIGKILL)

    def replaced() -> bool:
        pool.tick()
        return len(pool.processes()) == 2 and killed not in pool.processes()

    wait_until(replaced, "another worker")
    assert allowed(client_of(tmp_path, 0).check(request()))
    assert not page(pool.state, killed)


def test_a_worker_that_dies_at_once_is_not_started_in_a_loop(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    monkeypatch.setattr(sys, "executable", "/bin/false")
    spawn = Pool._spawn
    monkeypatch.setattr(Pool, "_spawn", lambda self, slot: (starts.append(time.monotonic()), spawn(self, slot)))
    for pid in pool.processes():
        os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        pool.tick()
        time.sleep(0.01)
    assert 4 <= len(starts) <= 14  # of two workers, at doubling intervals


def test_stop_leaves_neither_process_nor_socket(pool: Pool, tmp_path: Path) -> None:
    pids = pool.processes()
    pool.stop()
    assert not any(is_worker(pid, pool.state.root) for pid in pids)
    assert not list(tmp_path.glob("a.sock*"))


def abandon(pool: Pool) -> list[int]:
    """As if this process had been killed; the workers it leaves."""
    orphans = pool.processes()
    for slot in pool.slots:
        slot.process = None
    return orphans


def test_workers_outlive_the_pool_and_are_adopted(pool: Pool, tmp_path: Path) -> None:
    """A killed agent changes nothing already decided, nor does the next one."""
    orphans = abandon(pool)
    successor = Pool(pool.state, pool.address, 2)
    assert successor.orphans() == sorted(orphans)
    assert allowed(client_of(tmp_path, 0).check(request()))
    successor.start()
    try:
        assert successor.processes() == orphans
        os.kill(orphans[0], signal.SIGKILL)
        wait_until(lambda: successor.tick() or orphans[0] not in successor.processes(), "the death")
        wait_until(lambda: successor.tick() or len(successor.processes()) == 2, "another worker")
        assert allowed(client_of(tmp_path, 0).check(request()))
    finally:
        successor.stop()
    assert not any(is_worker(pid, pool.state.root) for pid in orphans)


def test_workers_of_other_arguments_are_succeeded(pool: Pool, tmp_path: Path) -> None:
    """The next pool takes over without a gap."""
    orphans = abandon(pool)
    successor = Pool(pool.state, pool.address, 2, direction="both")
    client = client_of(tmp_path, 0)
    assert allowed(client.check(request()))
    successor.start()
    try:
        wait_until(lambda: not any(is_worker(pid, pool.state.root) for pid in orphans) or _reap(orphans), "the drain")
        assert not set(successor.processes()) & set(orphans)
        assert client.health() == "SERVING"
        assert client_of(tmp_path, 1).health() == "SERVING"
    finally:
        successor.stop()


def test_a_worker_that_will_not_drain_is_ended(pool: Pool) -> None:
    orphans = abandon(pool)
    os.kill(orphans[0], signal.SIGSTOP)
    successor = Pool(pool.state, pool.address, 2, direction="both", grace_s=0.0)
    successor.start()
    try:
        wait_until(lambda: successor.tick() or _reap(orphans) or not is_worker(orphans[0], pool.state.root), "its end")
    finally:
        successor.stop()


def test_an_address_that_another_node_serves_is_refused(pool: Pool, tmp_path: Path) -> None:
    """A socket is renamed into place, so without asking it would be taken over unnoticed."""
    other = State(tmp_path / "other")
    other.prepare()
    with pytest.raises(AddressError, match="another process serves it"):
        (second := Pool(other, pool.address, 2)).start()
    second.stop()
    assert allowed(client_of(tmp_path, 0).check(request()))


def _reap(pids: list[int]) -> bool:
    """They are children of the test: collect those that ended."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue
    return False


def test_no_other_process_is_taken_for_a_worker(state: State) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "ext_authz"])
    try:
        assert not is_worker(other.pid, state.root)
        assert not is_worker(os.getpid(), state.root)
    finally:
        other.kill()
        other.wait()


def test_ports_count_up(state: State) -> None:
    with pytest.raises(AddressError):
        Pool(state, parse_address("127.0.0.1:65535"), 2).start()
    with pytest.raises(AddressError):
        Pool(state, parse_address("127.0.0.1:9000"), 0).start()
