# SPDX-License-Identifier: Apache-2.0
"""
The acts of the scenario, played through one door after the other, and an edit of the policy under load.

Every request is sent by the ship itself; its status is what the ship saw, who decided is what the door wrote.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ext_authz.demo.client import Connection, Load, Request, median_us
from ext_authz.demo.node import DemoError, Node
from ext_authz.demo.stage import Stage, Workload

SHIPS = ("deathstar", "tiefighter", "xwing")
DOORS = ("module", "ext-authz", "ext-proc")
POLICIES = Path(__file__).parent / "policies"
LOAD_S = 1.0  # before and after the edit

_LAND_TIE = Request("tiefighter", "POST", "/v1/request-landing")
_LAND_XWING = Request("xwing", "POST", "/v1/request-landing")
_EXHAUST = Request("tiefighter", "PUT", "/v1/exhaust-port")
_STATUS = Request("tiefighter", "GET", "/v1/")


@dataclass(frozen=True)
class Act:
    """One policy and what must come of each request under it."""

    title: str
    policy: str
    expected: tuple[tuple[Request, int], ...]


ACTS = (
    Act("no policy selects the Death Star", "open.yaml", ((_LAND_TIE, 200), (_LAND_XWING, 200), (_EXHAUST, 200))),
    Act("L3/L4: the empire, port 80", "l3-l4.yaml", ((_LAND_TIE, 200), (_LAND_XWING, 403), (_EXHAUST, 200))),
    Act("L7: POST /v1/request-landing", "l7.yaml", ((_LAND_TIE, 200), (_LAND_XWING, 403), (_EXHAUST, 403))),
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    door: str
    act: str
    ship: str
    request: str
    status: int
    expected: int
    policy: str
    rule: str
    miss: str
    added_us: float | None

    @property
    def ok(self) -> bool:
        return self.status == self.expected


@dataclass
class Switch:
    """What an edit under load came to. Times in milliseconds from the rename."""

    door: str
    requests: int = 0
    in_force_ms: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.wrong


@dataclass
class Scenario:
    """A stage, a folder for everything that is written, and how a denial's nearest miss is found."""

    stage: Stage
    folder: Path
    port: int
    nearest_miss: Callable[[Node, Request, Workload, Workload, int], str]

    def play(self, doors: tuple[str, ...], say: Callable[[str], None]) -> tuple[list[Row], list[Switch]]:
        """
        Play all acts through each door.

        Raises:
            DemoError: Something did not start.
        """
        self._write_endpoints()
        rows: list[Row] = []
        switches: list[Switch] = []
        with self._death_star():
            for door in doors:
                say(f"door {door}: starting a node and a stock Envoy")
                found, switch = self._play_door(door, say)
                rows += found
                switches.append(switch)
        return rows, switches

    def _play_door(self, door: str, say: Callable[[str], None]) -> tuple[list[Row], Switch]:
        self._write_policy(ACTS[0].policy)
        rows: list[Row] = []
        listen, upstream = self._addresses()
        with Node(door, self.folder / door, self._policies, self._endpoints, listen, upstream) as node:
            revision = node.revision
            for act in ACTS:
                if act is not ACTS[0]:
                    self._write_policy(act.policy)
                    revision = node.wait_for(revision)
                say(f"door {door}: {act.title}")
                rows += self._play_act(node, act)
            say(f"door {door}: editing the policy under load")
            return rows, self._edit_under_load(node)

    def _play_act(self, node: Node, act: Act) -> list[Row]:
        answers = []
        for request, expected in act.expected:
            with contextlib.closing(self._connect(request)) as connection:
                answers.append((request, expected, connection.send(request)))
        rows = []
        for (request, expected, answer), decision in zip(answers, node.decisions(len(answers)), strict=True):
            if (decision.method, decision.path) != (request.method, request.path):
                raise DemoError(f"{node.access_log}: logged {decision.method} {decision.path} for {request.line}")
            denied = answer.status == 403
            miss = self._miss(node, request) if denied else ""
            rows.append(
                Row(
                    node.door, act.title, request.ship, request.line, answer.status, expected, decision.policy,
                    decision.rule, miss, None if denied else self._added(request, node),
                )
            )  # fmt: skip
        return rows

    def _miss(self, node: Node, request: Request) -> str:
        return self.nearest_miss(node, request, self.stage.workloads[request.ship], self._star, self.port)

    def _added(self, request: Request, node: Node) -> float:
        """Median round trip through the door less the one straight to the server, in microseconds."""
        ship = self.stage.workloads[request.ship]
        through = median_us(ship, self.stage.node, self.port, request)
        straight = median_us(ship, self._star.address, self.port, request)
        node.decisions(220)  # those requests are no part of the table
        return through - straight

    def _edit_under_load(self, node: Node) -> Switch:
        switch = Switch(node.door)
        loads = {
            "must pass": self._load(_LAND_TIE),
            "must be denied": self._load(_LAND_XWING),
            "changes": self._load(_STATUS),
        }
        time.sleep(LOAD_S)
        revision = node.revision
        renamed = time.monotonic()
        self._write_policy("l7-edited.yaml")
        node.wait_for(revision)
        switch.in_force_ms = (time.monotonic() - renamed) * 1e3
        time.sleep(LOAD_S)
        for load in loads.values():
            load.stop()
            switch.wrong += load.failures
            switch.requests += len(load.answers)
            if not load.answers:
                switch.wrong.append(f"{load.request.line}: no answer at all")
        switch.wrong += _constant(loads["must pass"], 200) + _constant(loads["must be denied"], 403)
        switch.wrong += _flips_once(loads["changes"], renamed, renamed + switch.in_force_ms / 1e3)
        return switch

    def _load(self, request: Request) -> Load:
        return Load(self.stage.workloads[request.ship], self.stage.node, self.port, request)

    def _connect(self, request: Request) -> Connection:
        return Connection(self.stage.workloads[request.ship], self.stage.node, self.port)

    # ---- files and servers ----

    @property
    def _star(self) -> Workload:
        return self.stage.workloads["deathstar"]

    @property
    def _policies(self) -> Path:
        return self.folder / "policies"

    @property
    def _endpoints(self) -> Path:
        return self.folder / "endpoints.yaml"

    def _addresses(self) -> tuple[str, str]:
        return f"{self.stage.node}:{self.port}", f"{self._star.address}:{self.port}"

    def _write_endpoints(self) -> None:
        text = (POLICIES / "endpoints.yaml").read_text()
        for name, workload in self.stage.workloads.items():
            text = text.replace(f'"{{{name}}}"', workload.address)
        self._endpoints.write_text(text)

    def _write_policy(self, name: str) -> None:
        """Replace the policy as an editor would: the new file is renamed over the old one."""
        self._policies.mkdir(exist_ok=True)
        text = (POLICIES / name).read_text().replace('port: "80"', f'port: "{self.port}"')
        staged = self.folder / "rule1.yaml.new"
        staged.write_text(text)
        os.replace(staged, self._policies / "rule1.yaml")

    @contextlib.contextmanager
    def _death_star(self) -> Iterator[None]:
        argv = [sys.executable, "-m", "ext_authz.demo.server", self._star.address, str(self.port)]
        server = subprocess.Popen(self._star.command(argv), stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            if server.stdout.readline() != b"ready\n":
                raise DemoError("the Death Star's server did not start")
            yield
        finally:
            server.kill()
            server.wait()


def _constant(load: Load, status: int) -> list[str]:
    wrong = sum(1 for _, _, seen in load.answers if seen != status)
    return [f"{load.request.ship} {load.request.line}: {wrong} answers were not {status}"] if wrong else []


def _flips_once(load: Load, renamed: float, in_force: float) -> list[str]:
    """Denied before the edit, allowed once the door said it is in force, and never back in between."""
    wrong = []
    early = sum(1 for _, received, status in load.answers if received < renamed and status != 403)
    late = sum(1 for sent, _, status in load.answers if sent > in_force and status != 200)
    between = [status for sent, received, status in load.answers if received >= renamed and sent <= in_force]
    if early:
        wrong.append(f"{load.request.line}: {early} answers were not 403 before the edit")
    if late:
        wrong.append(f"{load.request.line}: {late} answers were not 200 after the new revision was in force")
    if any(status not in (200, 403) for status in between) or between != sorted(between, reverse=True):
        wrong.append(f"{load.request.line}: answers went back and forth during the edit")
    return wrong


def clear(folder: Path) -> None:
    """Empty a folder of an earlier demo; refuses one that is not of a demo."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "endpoints.yaml").exists():
            raise DemoError(f"{folder}: is not empty and not of an earlier demo")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
