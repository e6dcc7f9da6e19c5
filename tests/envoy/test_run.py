# SPDX-License-Identifier: Apache-2.0
"""Laws of `idmesh run` with an Envoy of its own: one command from policies to requests judged."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_harness import CLIENT, OTHER, ROOT, SERVER, WORLD, policy, wait_until
from envoy_tls import TRUST_DOMAIN, Pki
from envoy_tls import WORLD as ACCOUNTS

from ext_authz.agent.status import read_status
from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.process import find_processes
from ext_authz.state import State, read_json

RULES = "[{path: '/public/.*'}]"


@dataclass
class Run:
    """A node with Envoy before a backend."""

    folder: Path
    port: int
    envoy: EnvoyBinary
    backend: Backend
    process: subprocess.Popen[bytes] | None = None
    umask: int = -1
    tls: ssl.SSLContext | None = None  # its listener's

    @property
    def state(self) -> State:
        return State(self.folder / "state")

    def write(self, rules: str) -> None:
        staged = self.folder / "policies/.p"
        staged.write_text(policy(rules))
        staged.rename(self.folder / "policies/p.yaml")

    def _command(self, *words: str) -> list[str]:
        command = [sys.executable, "-m", "ext_authz.cli", "run", "--state", str(self.state.root)]
        return [
            *command,
            "--policies",
            str(self.folder / "policies"),
            "--endpoints",
            str(self.folder / "endpoints"),
            *words,
        ]

    def _environment(self) -> dict[str, str]:
        return dict(os.environ, PYTHONPATH=str(ROOT), IDMESH_ENVOY=str(self.envoy.path))

    def fails(self, *words: str) -> str:
        """What a node says that does not start."""
        ended = subprocess.run(
            self._command(*words), env=self._environment(), capture_output=True, text=True, check=False, timeout=30
        )
        assert ended.returncode == 2
        return ended.stderr

    def start(self, *words: str) -> None:
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self._command(*words), env=self._environment(), stderr=log, stdout=log, umask=self.umask
            )
        wait_until(lambda: self.status(CLIENT, "/public/x") == 200, (self.folder / "log").read_text()[-1500:], 30)
        # An Envoy that an earlier agent left answers at once.
        wait_until(lambda: self._page_of() == self.process.pid and self.envoy_now(), "the agent", 30)  # type: ignore[union-attr]

    def _page_of(self) -> int | None:
        return (read_json(self.state.status) or {}).get("pid")

    def door(self, name: str) -> list[str]:
        upstream = self.backend.address.text
        listen = ["--listen", f"{SERVER}:{self.port}", "--upstream", upstream, "--destination", "default/server:8080"]
        return ["--door", name, *listen]

    def configuration(self, *words: str) -> bytes:
        """Of the module's door, as `idmesh envoy` prints it."""
        command = [sys.executable, "-m", "ext_authz.cli", "envoy", *self.door("module")]
        command += ["--state", str(self.state.root), *words]
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        return subprocess.run(command, env=environment, capture_output=True, check=True).stdout

    def goodbye(self) -> str | None:
        """What Envoy says of a new client's connection: close, or nothing."""
        connection = http.client.HTTPConnection(SERVER, self.port, timeout=5, source_address=(CLIENT, 0))
        with contextlib.closing(connection):
            connection.request("GET", "/public/x")
            return connection.getresponse().getheader("connection")

    def status(self, source: str, path: str) -> int:
        """0: nobody answers."""
        connection = http.client.HTTPConnection(SERVER, self.port, timeout=5, source_address=(source, 0))
        try:
            if self.tls:
                connection.connect()
                connection.sock = self.tls.wrap_socket(connection.sock)
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def pids(self) -> list[int]:
        """What the node started: Envoy, workers."""
        page = read_status(self.state).page
        return [pid for pid in [page.get("envoy"), *(page.get("workers") or [])] if pid]

    def envoy_now(self) -> int | None:
        return read_status(self.state).page.get("envoy")

    def end(self) -> None:
        """Nothing may be left, whatever the test did."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        folder = os.fsencode(self.folder)
        for pid in find_processes(lambda words: any(folder in word for word in words)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def run(tmp_path: Path, envoy: EnvoyBinary, backend: Backend) -> Iterator[Run]:
    with socket.create_server((SERVER, 0)) as free:
        port = free.getsockname()[1]
    made = Run(tmp_path, port, envoy, backend)
    for name in ("policies", "endpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "endpoints/pods.yaml").write_text(WORLD)
    made.write(RULES)
    yield made
    made.end()


@pytest.mark.parametrize("door", ["module", "ext-authz", "ext-proc"])
def test_one_command_goes_from_policies_to_requests_judged(run: Run, door: str) -> None:
    run.start(*run.door(door))
    assert run.status(CLIENT, "/private") == 403
    assert run.status(OTHER, "/public/x") == 403
    # One worker serves both gRPC doors.
    reader = "module" if door == "module" else "ext-authz"
    assert [found.door for found in read_status(run.state).readers] == [reader]


@pytest.mark.parametrize("door", ["module", "ext-authz"])
def test_a_change_is_in_force_in_the_door_within_100_ms_of_the_rename(run: Run, door: str) -> None:
    run.start(*run.door(door))
    took = []
    for turn in range(6):
        wanted = 403 if turn % 2 == 0 else 200
        run.write("[{path: /elsewhere}]" if wanted == 403 else RULES)
        started = time.monotonic()
        wait_until(lambda: run.status(CLIENT, "/public/x") == wanted, "the change")  # noqa: B023
        took.append(time.monotonic() - started)
    assert sorted(took)[len(took) // 2] < 0.15, took


def test_its_listener_can_ask_for_certificates(run: Run) -> None:
    pki = Pki(run.folder / "pki")
    words = ["--tls-cert", str(pki.leaf("IP:127.1.0.21")), "--tls-key", str(pki.key), "--tls-ca", str(pki.authority)]
    words += ["--trust-domain", TRUST_DOMAIN, "--require", "certificate"]
    (run.folder / "endpoints/pods.yaml").write_text(ACCOUNTS)
    run.tls = pki.context(pki.leaf(f"URI:spiffe://{TRUST_DOMAIN}/ns/default/sa/walker"))
    run.start(*run.door("module"), *words)
    assert run.status(CLIENT, "/private") == 403
    run.tls = pki.context(pki.leaf(f"URI:spiffe://{TRUST_DOMAIN}/ns/default/sa/talker"))
    assert run.status(CLIENT, "/public/x") == 403
    run.tls = pki.context(None)
    assert run.status(CLIENT, "/public/x") == 0
    refused = subprocess.run(
        [sys.executable, "-m", "ext_authz.cli", "run", "--policies", str(run.folder / "policies"), *words],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        check=False,
    )
    assert (refused.returncode, refused.stderr) == (2, b"idmesh run: --tls-cert needs --door\n")


def test_sigterm_drains_and_leaves_nothing(run: Run) -> None:
    run.start(*run.door("ext-authz"), "--workers", "2")
    wait_until(lambda: len(run.pids()) == 3, "Envoy and two workers")
    pids = run.pids()
    answers: list[int] = []
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            answers.append(run.status(CLIENT, "/public/x"))

    loading = threading.Thread(target=load)
    loading.start()
    time.sleep(0.3)
    assert run.stop() == 0
    ended.set()
    loading.join()
    # A request was served, or found nobody: none was denied for want of a service.
    assert set(answers) <= {200, 0}
    assert all(_ended(pid) for pid in pids)


def test_a_killed_envoy_is_started_again(run: Run) -> None:
    run.start(*run.door("module"))
    before = run.pids()[0]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: run.envoy_now() not in (None, before), "another Envoy")
    wait_until(lambda: run.status(CLIENT, "/public/x") == 200, "its listener")


class Held:
    """One connection that stays open."""

    def __init__(self, run: Run, source: str = CLIENT) -> None:
        self.connection = http.client.HTTPConnection(SERVER, run.port, timeout=5, source_address=(source, 0))
        self.connection.connect()
        assert self.connection.sock is not None
        self.port = self.connection.sock.getsockname()[1]

    def status(self, path: str) -> int:
        self.connection.request("GET", path)
        answer = self.connection.getresponse()
        answer.read()
        assert self.connection.sock is not None, "the server closed it"
        assert self.connection.sock.getsockname()[1] == self.port
        return answer.status


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
    assert all(_ended(pid) for pid in before)


def test_an_envoy_that_was_draining_when_its_agent_was_killed_is_not_adopted(run: Run) -> None:
    """It sends everybody away, so adopting it would cost each client its connection at every request."""
    run.start(*run.door("module"), "--grace", "60")
    assert run.process is not None
    draining, held = run.pids()[0], Held(run)
    assert held.status("/public/x") == 200
    run.process.terminate()
    wait_until(lambda: run.goodbye() == "close", "the drain")
    run.process.kill()
    run.process.wait()
    run.start(*run.door("module"), "--grace", "1")
    assert run.envoy_now() not in (None, draining)
    wait_until(lambda: _ended(draining), "its end", 20)
    assert run.goodbye() is None


@pytest.mark.parametrize("door", ["module", "ext-authz"])
def test_an_agent_that_does_not_start_leaves_what_runs_to_the_next(run: Run, door: str) -> None:
    run.start(*run.door(door))
    assert run.process is not None
    before, held = run.pids(), Held(run)
    run.process.kill()
    run.process.wait()
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


def test_an_adopted_envoy_that_is_killed_is_started_again(run: Run) -> None:
    run.start(*run.door("module"))
    assert run.process is not None
    run.process.kill()
    run.process.wait()
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
    run.process.kill()
    run.process.wait()
    run.start(*run.door("module"), "--concurrency", "2", "--grace", "20")
    wait_until(lambda: run.envoy_now() not in (None, orphan), "the successor")
    assert run.status(CLIENT, "/private") == 403
    held.connection.request("GET", "/public/x")
    answer = held.connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"backend")
    assert answer.getheader("connection") == "close"
    wait_until(lambda: _ended(orphan), "the orphan's end", 20)
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
    run.process.kill()
    run.process.wait()
    run.start("--envoy", str(second), "--grace", "1")
    wait_until(lambda: run.envoy_now() not in (None, orphan), "the successor")
    wait_until(lambda: _ended(orphan), "the orphan's end", 20)
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
    run.process.kill()
    run.process.wait()
    run.start("--envoy", str(config), "--grace", "1", "--concurrency", "2")
    wait_until(lambda: run.envoy_now() not in (None, orphan) and _ended(orphan), "the successor", 20)
    wait_until(lambda: run.status(CLIENT, "/private") == 403, "its listener")


def test_an_envoy_that_was_never_recorded_is_found_and_ended(run: Run) -> None:
    """An agent may be killed between the start of Envoy and its note of it."""
    run.start(*run.door("module"))
    assert run.process is not None
    orphan = run.pids()[0]
    run.process.kill()
    run.process.wait()
    (run.state.root / "envoy.json").unlink()
    run.start(*run.door("module"))
    wait_until(lambda: _ended(orphan), "the orphan's end", 20)
    wait_until(lambda: run.status(CLIENT, "/private") == 403, "the successor")


def test_only_its_owner_reaches_envoys_admin_interface(run: Run) -> None:
    run.umask = 0
    run.start(*run.door("module"))
    assert stat.S_IMODE((run.state.root / "envoy-admin.sock").stat().st_mode) == 0o600


def _ended(pid: int) -> bool:
    """Gone, or waiting to be collected by whoever adopted it."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def test_a_configuration_of_ones_own_is_run_as_it_is(run: Run) -> None:
    config = run.folder / "own.json"
    config.write_text(json.dumps(json.loads(run.configuration())))
    run.start("--envoy", str(config))
    assert run.status(CLIENT, "/private") == 403
