# SPDX-License-Identifier: Apache-2.0
"""What an agent finds running when it starts: it adopts it, or stands in its place; and what a failed one leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from envoy_harness import CLIENT, wait_until
from envoy_run import Held, Run, ended

from ext_authz.process import find_processes

# What breaks in an agent: before it is ready; a moment after; once the file FAIL is there.
UNREADY = """
from ext_authz.agent import administration
async def broken(*_):
    raise OSError("injected")
administration.serve = broken
"""
HALF_WAY = """
from ext_authz.agent.proxy import Proxy
def broken(self):
    raise OSError("injected")
Proxy.start = broken
"""
FULL = """
from ext_authz.agent import proxy
write = proxy.write_json
def broken(path, value):
    if value["leaving"]:
        raise OSError("injected")
    write(path, value)
proxy.write_json = broken
"""
SLOW = """
import time
from ext_authz.agent.proxy import Proxy
Proxy._wait_serving = lambda self: time.sleep(6)
"""
LATER = """
import os
from ext_authz.agent.children import Children
tick = Children.tick
def broken(self):
    if os.path.exists("FAIL"):
        raise OSError("injected")
    tick(self)
Children.tick = broken
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2])
@pytest.mark.parametrize("door", ["module", "ext-authz"])
def test_a_connection_outlives_the_agent_and_the_next_adopts_what_runs(
    run: Run, door: str, number: signal.Signals
) -> None:
    run.start(*run.door(door))
    assert run.process is not None
    before, held = run.pids(), Held(run)
    assert held.status("/public/x") == 200
    run.process.send_signal(number)
    assert run.process.wait(20) == (-number if number == signal.SIGKILL else 0)
    assert held.status("/public/x") == 200
    assert held.status("/private") == 403
    run.start(*run.door(door))
    wait_until(lambda: run.pids() == before, "the adoption")
    assert held.status("/public/x") == 200
    run.write("[{path: /elsewhere}]")
    wait_until(lambda: held.status("/public/x") == 403, "the next agent's own policy")
    assert run.stop() == 0
    assert all(ended(pid) for pid in before)


def test_an_envoy_that_was_draining_when_its_agent_was_killed_is_not_adopted(run: Run) -> None:
    """It sends everybody away, so adopting it would cost each client its connection at every request."""
    run.start(*run.door("module"), "--grace", "60")
    assert run.process is not None
    draining, held = run.pids()[0], Held(run)
    assert held.status("/public/x") == 200
    run.process.terminate()
    wait_until(lambda: run.goodbye() == "close", "the drain")
    run.kill()
    run.start(*run.door("module"), "--grace", "1")
    assert run.envoy_now() not in (None, draining)
    wait_until(lambda: ended(draining), "its end", 20)
    assert run.goodbye() is None


@pytest.mark.parametrize("door", ["module", "ext-authz"])
def test_an_agent_that_does_not_start_leaves_what_runs_to_the_next(run: Run, door: str) -> None:
    run.start(*run.door(door))
    assert run.process is not None
    before, held = run.pids(), Held(run)
    run.kill()
    taken = run.folder / "taken.sock"
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(f"{taken}.0")  # of the first worker
        stranger.listen()
        words = [*run.door(door), "--grpc", f"unix:{taken}"]
        assert "another process serves it" in run.fails(*words)
    assert held.status("/public/x") == 200
    run.start(*run.door(door))
    wait_until(lambda: run.pids() == before, "the adoption")
    assert held.status("/public/x") == 200


def test_an_agent_that_fails_leaves_what_runs_to_the_next(run: Run) -> None:
    run.broken = LATER.replace("FAIL", str(run.folder / "fail"))
    run.start(*run.door("ext-authz"))
    before, held = run.pids(), Held(run)
    assert held.status("/public/x") == 200
    (run.folder / "fail").touch()
    assert run.ends() == 2
    assert held.status("/public/x") == 200
    run.broken = ""
    run.start(*run.door("ext-authz"))
    wait_until(lambda: run.pids() == before, "the adoption")
    assert held.status("/public/x") == 200


def test_one_that_fails_when_it_stands_in_the_place_of_another_leaves_its_own(run: Run) -> None:
    run.start(*run.door("ext-authz"))
    before = run.pids()
    run.kill()
    run.broken = UNREADY
    words = [*run.door("ext-authz"), "--concurrency", "2", "--grace", "1"]
    assert "injected" in run.fails(*words)
    assert all(ended(pid) for pid in before)
    assert run.status(CLIENT, "/public/x") == 200
    run.broken = ""
    run.start(*words)
    assert run.status(CLIENT, "/public/x") == 200


@pytest.mark.parametrize("broken", [HALF_WAY, UNREADY])
def test_a_first_start_that_fails_leaves_nothing(run: Run, broken: str) -> None:
    run.broken = broken
    assert "injected" in run.fails(*run.door("ext-authz"))
    root = os.fsencode(run.state.root)
    assert find_processes(lambda words: any(root in word for word in words)) == []


def test_who_drains_another_ends_it_even_if_it_fails_itself(run: Run) -> None:
    """Else both would listen at the port for good, and the one that nobody knows judges by its old configuration."""
    old, new = _two_configurations(run)
    run.start("--envoy", str(old))
    orphan, held = run.pids()[0], Held(run)
    assert held.status("/public/x") == 200
    run.kill()
    run.broken = LATER.replace("FAIL", str(run.folder / "fail"))
    run.start("--envoy", str(new), "--grace", "3")
    assert not ended(orphan)
    (run.folder / "fail").touch()
    assert run.ends() == 2
    assert ended(orphan)
    assert run.status(CLIENT, "/public/x") == 200


def test_one_that_drains_another_is_killed_and_the_next_goes_on_with_it(run: Run) -> None:
    old, new = _two_configurations(run)
    run.start("--envoy", str(old))
    orphan, held = run.pids()[0], Held(run)
    assert held.status("/public/x") == 200
    run.kill()
    run.start("--envoy", str(new), "--grace", "60")
    successor = run.envoy_now()
    assert not ended(orphan)
    run.kill()
    run.start("--envoy", str(new), "--grace", "1")
    wait_until(lambda: ended(orphan), "its end", 20)
    assert run.envoy_now() == successor


def test_the_time_to_drain_does_not_begin_anew_with_each_agent(run: Run) -> None:
    """Else two configurations would stay at one port for as long as agents are killed often enough."""
    old, new = _two_configurations(run)
    run.start("--envoy", str(old))
    orphan, held = run.pids()[0], Held(run)
    assert held.status("/public/x") == 200
    until = time.monotonic() + 40
    while not ended(orphan):
        assert time.monotonic() < until, "it drains for ever"
        run.kill()
        run.start("--envoy", str(new), "--grace", "6")
        time.sleep(1)


def test_the_time_to_drain_begins_when_the_successor_serves(run: Run) -> None:
    old, new = _two_configurations(run)
    run.start("--envoy", str(old))
    orphan, held = run.pids()[0], Held(run)
    assert held.status("/public/x") == 200
    run.kill()
    run.broken = SLOW
    run.launch("--envoy", str(new), "--grace", "3")
    wait_until(lambda: "draining" in (run.folder / "log").read_text(), "the successor", 20)
    time.sleep(4)
    assert held.status("/public/x") == 200  # more than the grace ago, and not yet asked to leave
    wait_until(lambda: ended(orphan), "its end", 20)


def test_a_node_without_an_envoy_ends_that_of_an_earlier_one(run: Run) -> None:
    run.start(*run.door("module"))
    orphan = run.pids()[0]
    run.kill()
    run.launch("--grace", "1")
    wait_until(lambda: ended(orphan), "its end", 20)
    assert run.stop() == 0


def test_a_handover_does_not_wait_for_who_drains(run: Run) -> None:
    old, new = _two_configurations(run)
    run.start("--envoy", str(old))
    orphan, held = run.pids()[0], Held(run)
    assert held.status("/public/x") == 200
    run.kill()
    run.start("--envoy", str(new), "--grace", "60")
    assert run.process is not None
    run.process.send_signal(signal.SIGUSR2)
    assert run.process.wait(10) == 0
    assert not ended(orphan)
    run.start("--envoy", str(new), "--grace", "1")
    wait_until(lambda: ended(orphan), "its end", 20)


def test_a_record_that_cannot_be_written_lets_nobody_adopt_who_drains(run: Run) -> None:
    run.broken = FULL
    run.start(*run.door("module"), "--grace", "60")
    draining, held = run.pids()[0], Held(run)
    assert held.status("/public/x") == 200
    assert run.process is not None
    run.process.terminate()
    wait_until(lambda: run.goodbye() == "close", "the drain")
    run.kill()
    run.broken = ""
    run.start(*run.door("module"), "--grace", "1")
    assert run.envoy_now() != draining


def test_a_first_start_that_fails_beside_an_observer_leaves_no_envoy(run: Run) -> None:
    run.launch()
    wait_until(lambda: (run.state.root / "observer.json").exists(), "the observer", 20)
    run.kill()
    run.broken = UNREADY
    assert "injected" in run.fails(*run.door("ext-authz"))
    assert run.status(CLIENT, "/public/x") == 0


def test_who_was_killed_while_draining_is_succeeded_by_another_configuration(run: Run) -> None:
    """At the same port; its Envoy is known, so that the port is not taken for a stranger's."""
    old, new = _two_configurations(run)
    run.start("--envoy", str(old), "--grace", "60")
    draining, held = run.pids()[0], Held(run)
    assert held.status("/public/x") == 200
    assert run.process is not None
    run.process.terminate()
    wait_until(lambda: run.goodbye() == "close", "the drain")
    run.kill()
    run.start("--envoy", str(new), "--grace", "1")
    wait_until(lambda: ended(draining), "its end", 20)
    assert run.goodbye() is None


def test_an_envoy_that_was_making_room_is_not_adopted(run: Run) -> None:
    config = run.folder / "own.json"
    config.write_bytes(run.configuration("--admin", _free_address()))
    run.start("--envoy", str(config))
    draining, held = run.pids()[0], Held(run)
    assert held.status("/public/x") == 200
    run.kill()
    run.launch("--envoy", str(config), "--concurrency", "2", "--grace", "60")
    wait_until(lambda: run.goodbye() == "close", "the drain", 20)
    run.kill()
    run.start("--envoy", str(config), "--grace", "1")
    wait_until(lambda: ended(draining), "its end", 20)
    wait_until(lambda: run.status(CLIENT, "/public/x") == 200, "the successor", 20)
    assert run.goodbye() is None


def _two_configurations(run: Run) -> list[Path]:
    found = [run.folder / "old.json", run.folder / "new.json"]
    for number, config in enumerate(found):
        config.write_bytes(run.configuration("--admin", f"unix:{run.folder}/admin-{number}.sock"))
    return found


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_what_else_runs_with_our_configuration_is_ended_and_the_adopted_one_not_drained(run: Run) -> None:
    run.start(*run.door("module"))
    before = run.pids()
    words = [sys.executable, "-c", "import time; time.sleep(100)", "-c", str(run.state.root / "envoy-config.json")]
    with subprocess.Popen(words) as other:
        run.kill()
        run.start(*run.door("module"))
        assert other.wait(20) == -signal.SIGTERM
    assert run.pids() == before
    assert run.goodbye() is None


def test_an_adopted_envoy_that_is_killed_is_started_again(run: Run) -> None:
    run.start(*run.door("module"))
    run.kill()
    run.start(*run.door("module"))
    before = run.pids()[0]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: run.envoy_now() not in (None, before), "another Envoy")
    wait_until(lambda: run.status(CLIENT, "/public/x") == 200, "its listener")
    assert not (run.state.readers / f"{before}.json").exists()


def test_an_envoy_of_another_configuration_is_succeeded_and_drained(run: Run) -> None:
    """Its connections are asked to leave, and none is cut while a request is on its way."""
    run.start(*run.door("module"))
    assert run.process is not None
    orphan, held = run.pids()[0], Held(run)
    assert held.status("/public/x") == 200
    run.kill()
    run.start(*run.door("module"), "--concurrency", "2", "--grace", "20")
    wait_until(lambda: run.envoy_now() not in (None, orphan), "the successor")
    assert run.status(CLIENT, "/private") == 403
    held.connection.request("GET", "/public/x")
    answer = held.connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"backend")
    assert answer.getheader("connection") == "close"
    wait_until(lambda: ended(orphan), "the orphan's end", 20)
    assert run.status(CLIENT, "/public/x") == 200


@pytest.mark.parametrize("admin", [None, "unix:ADMIN"])
def test_an_envoy_of_a_configuration_under_another_name_is_succeeded(run: Run, admin: str | None) -> None:
    """Else both would listen at the port, and each judge a part of the connections."""
    words = ["--admin", admin.replace("ADMIN", str(run.folder / "admin.sock"))] if admin else []
    first, second = run.folder / "a.json", run.folder / "b.json"
    for config in (first, second):
        config.write_bytes(run.configuration(*words))
    run.start("--envoy", str(first), "--grace", "1")
    assert run.process is not None
    orphan = run.pids()[0]
    run.kill()
    run.start("--envoy", str(second), "--grace", "1")
    wait_until(lambda: run.envoy_now() not in (None, orphan), "the successor")
    wait_until(lambda: ended(orphan), "the orphan's end", 20)
    wait_until(lambda: run.status(CLIENT, "/private"), "an answer of the successor", 20)
    assert run.status(CLIENT, "/private") == 403
    assert run.status(CLIENT, "/public/x") == 200


def test_an_envoy_whose_admin_interface_has_a_port_makes_room_first(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        admin = f"127.0.0.1:{free.getsockname()[1]}"
    config = run.folder / "own.json"
    config.write_bytes(run.configuration("--admin", admin))
    run.start("--envoy", str(config), "--grace", "1")
    assert run.process is not None
    orphan = run.pids()[0]
    run.kill()
    run.start("--envoy", str(config), "--grace", "1", "--concurrency", "2")
    wait_until(lambda: run.envoy_now() not in (None, orphan) and ended(orphan), "the successor", 20)
    wait_until(lambda: run.status(CLIENT, "/private") == 403, "its listener")


def test_an_envoy_that_was_never_recorded_is_found_and_ended(run: Run) -> None:
    """An agent may be killed between the start of Envoy and its note of it."""
    run.start(*run.door("module"))
    assert run.process is not None
    orphan = run.pids()[0]
    run.kill()
    (run.state.root / "envoy.json").unlink()
    run.start(*run.door("module"))
    wait_until(lambda: ended(orphan), "the orphan's end", 20)
    wait_until(lambda: run.status(CLIENT, "/private") == 403, "the successor")
