# SPDX-License-Identifier: Apache-2.0
"""
Laws of sudden death: whatever is killed and whenever, nothing that policy denies is served, and all comes back.

Agent, compiling process, workers, observer and Envoy are killed at random under load, sometimes several at once. Who
kills the agent starts it again, as systemd would; everything else must come back by itself. IDMESH_KILLS: how many
(27 here, 1,000 in `make soak`); IDMESH_KILLS_SEED: of the order.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from service_run import environment, wait_until

from ext_authz.agent.status import read_status
from ext_authz.process import find_processes
from ext_authz.state import State
from tests.envoy.envoy_backend import Backend, http_backend
from tests.envoy.envoy_harness import CLIENT, OTHER, SERVER, WORLD, policy

KILLS = int(os.environ.get("IDMESH_KILLS", "27"))
SEED = int(os.environ.get("IDMESH_KILLS_SEED", "0")) or random.randrange(1, 1 << 32)
DOORS = ("module", "ext-authz", "ext-proc")
RECOVERY_S = 120.0
# Path of every request that policy denies; the backend must never see it.
FORBIDDEN = "/private/x", "/public/by-other"
MARKS = {
    "builder": b"ext_authz.agent.builder",
    "worker": b"ext_authz.service.worker",
    "observer": b"ext_authz.flow.observer",
    "envoy": b"--use-dynamic-base-id",
    "agent": b"run",
}


@dataclass
class Asker(threading.Thread):
    """Sends one request after the other, on one connection as long as that lives."""

    port: int
    source: str
    path: str
    answers: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        connection = self._connection()
        while not self.ended.is_set():
            status = ask(connection, self.path)
            self.answers[status] += 1
            if not status:
                connection.close()
                connection = self._connection()
                self.ended.wait(0.005)
        connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(SERVER, self.port, timeout=5, source_address=(self.source, 0))


def ask(connection: http.client.HTTPConnection, path: str) -> int:
    """0: no answer."""
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0


@dataclass
class Stage:
    """A node with Envoy, its supervisor, and who loads it."""

    folder: Path
    door: str
    port: int
    backend: Backend
    agent: subprocess.Popen[bytes] | None = None
    supervised: bool = True
    askers: list[Asker] = field(default_factory=list)
    misserved: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def state(self) -> State:
        return State(self.folder / "state")

    def write(self, turn: int) -> None:
        """Another revision in which the same is allowed."""
        staged = self.folder / "policies/.p"
        staged.write_text(policy(f"[{{path: '/public/.*'}}, {{path: /turn/{turn}}}]"))
        staged.rename(self.folder / "policies/p.yaml")

    def start(self) -> None:
        command = [sys.executable, "-m", "ext_authz.cli", "run", "--state", str(self.state.root), "--door", self.door]
        command += ["--policies", str(self.folder / "policies"), "--endpoints", str(self.folder / "endpoints")]
        command += ["--listen", f"{SERVER}:{self.port}", "--upstream", self.backend.address.text]
        command += ["--destination", "default/server:8080", "--concurrency", "1", "--grace", "1"]
        with open(self.folder / "log", "ab") as log:
            self.agent = subprocess.Popen(command, env=environment(), stderr=log, stdout=log)

    def supervise(self) -> None:
        """As systemd with Restart=always."""
        while not self._ended.wait(0.02):
            assert self.agent is not None
            if self.supervised and self.agent.poll() is not None:
                self.start()

    def of_kind(self, kind: str) -> list[int]:
        root = os.fsencode(self.state.root)
        mark = MARKS[kind]
        return find_processes(lambda words: mark in words and any(root in word for word in words))

    def once(self, source: str, path: str) -> int:
        connection = http.client.HTTPConnection(SERVER, self.port, timeout=5, source_address=(source, 0))
        try:
            return ask(connection, path)
        finally:
            connection.close()

    def well(self) -> bool:
        """Everything runs once, is in order, and decides as it should."""
        kinds = [kind for kind in MARKS if kind != "worker" or self.door != "module"]
        return (
            all(len(self.of_kind(kind)) == 1 for kind in kinds)
            and read_status(self.state).healthy
            and self.once(CLIENT, "/public/x") == 200
            and self.once(CLIENT, "/private/x") == 403
        )

    def recover(self) -> None:
        try:
            wait_until(self.well, "recovery", RECOVERY_S)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self._trouble()}") from None
        self.check_backend()

    def _trouble(self) -> str:
        running = {kind: self.of_kind(kind) for kind in MARKS}
        answers = self.once(CLIENT, "/public/x"), self.once(CLIENT, "/private/x")
        log = (self.folder / "log").read_text(errors="replace")[-3000:]
        return f"{running}, {read_status(self.state).problems}, answers {answers}\n{log}"

    def check_backend(self) -> None:
        """Count what reached it and never should have; forget the rest."""
        count = len(self.backend.requests)
        self.misserved += sum(seen.path in FORBIDDEN for seen in self.backend.requests[:count])
        del self.backend.requests[:count]

    def load(self) -> None:
        for source, path in ((CLIENT, "/public/x"), (CLIENT, FORBIDDEN[0]), (OTHER, FORBIDDEN[1])):
            self.askers.append(Asker(self.port, source, path))
            self.askers[-1].start()

    def rest(self) -> None:
        for asker in self.askers:
            asker.ended.set()
        for asker in self.askers:
            asker.join(10)

    def end(self) -> None:
        self._ended.set()
        self.rest()
        root = os.fsencode(self.folder)
        for _ in range(3):  # what is between two programs shows up at the next look
            for pid in find_processes(lambda words: any(root in word for word in words)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.agent:
            self.agent.wait(10)


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    with socket.create_server((SERVER, 0)) as free:
        port = free.getsockname()[1]
    for name in ("policies", "endpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "endpoints/pods.yaml").write_text(WORLD)
    with http_backend() as backend:
        made = Stage(tmp_path, request.param, port, backend)
        made.write(0)
        made.start()
        supervisor = threading.Thread(target=made.supervise, daemon=True)
        supervisor.start()
        try:
            made.recover()
            yield made
        finally:
            made.end()
            supervisor.join(10)


@pytest.mark.needs_envoy
@pytest.mark.parametrize("stage", DOORS, indirect=True)
def test_nothing_denied_is_served_whoever_is_killed_and_all_comes_back(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, killed, started = random.Random(SEED), Counter[str](), time.monotonic()
    kinds = [kind for kind in MARKS if kind != "worker" or stage.door != "module"]
    stage.load()
    turn = 0
    while killed.total() * len(DOORS) < KILLS:
        turn += 1
        stage.write(turn)
        for kind in rng.sample(kinds, rng.choice((1, 1, 1, 2, len(kinds)))):
            time.sleep(rng.random() * rng.choice((0.0, 0.02, 0.3)))
            for pid in stage.of_kind(kind):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed[kind] += 1
        if rng.random() < 0.6:
            stage.recover()
    stage.recover()
    stage.rest()
    stage.check_backend()
    _report(stage, killed, time.monotonic() - started, capsys)
    allowed, *denied = stage.askers
    assert stage.misserved == 0
    assert not any(asker.answers[200] for asker in denied)
    assert all(asker.answers[403] for asker in denied)
    assert allowed.answers[200]
    # The module has its snapshot before its listener; nothing that it answers is a guess.
    assert stage.door != "module" or not allowed.answers[403]


def _report(stage: Stage, killed: Counter[str], seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    allowed, *denied = stage.askers
    misjudged = stage.misserved + sum(asker.answers[200] for asker in denied)
    with capsys.disabled():
        kills = ", ".join(f"{count} {kind}" for kind, count in sorted(killed.items()))
        print(f"\n{stage.door}: {killed.total()} kills ({kills}) in {seconds:.0f} s, seed {SEED}")
        print(f"  to be allowed: {_counts(allowed.answers)}")
        print(f"  to be denied:  {_counts(sum((asker.answers for asker in denied), Counter()))}")
        print(f"  misjudged = {misjudged}")


def _counts(answers: Counter[int]) -> str:
    failed = sum(count for status, count in answers.items() if status not in (200, 403))
    return f"{answers[200]} allowed, {answers[403]} denied, {failed} failed"


@pytest.mark.needs_envoy
@pytest.mark.parametrize("stage", ["module"], indirect=True)
def test_the_module_goes_on_deciding_while_agent_and_compiling_process_are_dead(stage: Stage) -> None:
    _kill_for_good(stage, "agent", "builder", "observer")
    for _ in range(50):
        assert stage.once(CLIENT, "/public/x") == 200
        assert stage.once(CLIENT, FORBIDDEN[0]) == 403
        assert stage.once(OTHER, FORBIDDEN[1]) == 403
    stage.supervised = True
    stage.recover()
    assert stage.misserved == 0


@pytest.mark.needs_envoy
@pytest.mark.parametrize("stage", ["ext-authz", "ext-proc"], indirect=True)
def test_a_grpc_door_denies_while_its_workers_are_dead(stage: Stage) -> None:
    _kill_for_good(stage, "agent", "worker")
    stage.backend.requests.clear()
    for _ in range(20):
        assert stage.once(CLIENT, "/public/x") == 403
        assert stage.once(CLIENT, FORBIDDEN[0]) == 403
    assert not stage.backend.requests
    stage.supervised = True
    stage.recover()


def _kill_for_good(stage: Stage, *kinds: str) -> None:
    stage.supervised = False
    for kind in kinds:
        for pid in stage.of_kind(kind):
            os.kill(pid, signal.SIGKILL)
    assert stage.agent is not None
    stage.agent.wait(10)
    wait_until(lambda: not any(stage.of_kind(kind) for kind in kinds), "their end")
