# SPDX-License-Identifier: Apache-2.0
"""
The same scenario without anybody knowing: unmodified curl to the Death Star's own address, judged in the kernel,
and steered into Envoy where a rule asks for requests.

Root and BPF only. Everything lies in namespaces, a cgroup and a mount of the demo's own, and is taken away again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ext_authz.agent import cgroups
from ext_authz.agent.datapath_support import why_not
from ext_authz.demo.client import Request
from ext_authz.demo.miss import miss_in
from ext_authz.demo.node import IDMESH, START_S, STOP_S, SWITCH_S, DemoError
from ext_authz.demo.scenario import ACTS, POLICIES, SHIPS, Act, Row
from ext_authz.play.network import Network
from ext_authz.state import State, read_json

DOOR = "transparent"
_ADDRESSES = {name: f"10.12.0.{10 + number}" for number, name in enumerate(SHIPS)}
_LABELS = {
    "deathstar": "org=empire,class=deathstar",
    "tiefighter": "org=empire,class=tiefighter",
    "xwing": "org=alliance,class=xwing",
}
_NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n"
_READERS = {"module", "bpf"}


def missing() -> str:
    """Why this part cannot be played here, or empty."""
    if shutil.which("curl") is None:
        return "curl is not installed"
    if cgroups.mounted() is None:
        return "no cgroup2 hierarchy is mounted"
    return why_not()


@dataclass
class Transparent:
    """A folder for everything that is written."""

    folder: Path

    @property
    def _state(self) -> State:
        return State(self.folder / "state")

    def play(self, say: Callable[[str], None]) -> list[Row]:
        """
        Play all acts.

        Raises:
            DemoError: Something did not start.
        """
        rows: list[Row] = []
        with contextlib.ExitStack() as stack:
            self._cgroup = stack.enter_context(_own_cgroup())
            self._net = stack.enter_context(Network())
            for name, address in _ADDRESSES.items():
                self._net.add(name, address)
            stack.enter_context(self._death_star())
            self._write_policy(ACTS[0])
            say(f"door {DOOR}: loading the kernel's programs, starting a stock Envoy")
            stack.enter_context(self._node())
            for name in SHIPS:
                where = ["--netns", self._net.ends[name].space.path, "--labels", _LABELS[name]]
                self._idmesh("endpoint", "attach", name, *where)
            revision = self._wait_for(0)
            for act in ACTS:
                if act is not ACTS[0]:
                    self._write_policy(act)
                    revision = self._wait_for(revision)
                say(f"door {DOOR}: {act.title}")
                rows += [self._send(act, request, expected) for request, expected in act.expected]
        return rows

    def _send(self, act: Act, request: Request, expected: int) -> Row:
        """One request by curl. The kernel's denial is no answer at all, where a proxy says 403."""
        wanted = 0 if expected == 403 and request.ship == "xwing" else expected
        status = self._curl(request)
        flow = self._decision(request)
        rules = [flow.get(f"ingress_{word}_by") or [] for word in ("denied", "allowed")]
        found: dict[str, Any] = next((one for one in (*rules[0], *rules[1])), {})
        own = (flow.get("extensions") or {}).get("value") or {}
        policy = f"{found['kind']} {found['namespace']}/{found['name']}" if found else ""
        ends = _ADDRESSES[request.ship], "default/deathstar"
        miss = miss_in(self._state.snapshot, request, *ends, 80, _ADDRESSES["deathstar"]) if status != 200 else ""
        rule = str(own.get("rule") or "")
        return Row(DOOR, act.title, request.ship, request.line, status, wanted, policy, rule, miss, None)

    def _curl(self, request: Request) -> int:
        """The status that an unmodified client sees; 0: no answer."""
        url = f"http://{_ADDRESSES['deathstar']}{request.path}"
        words = ["curl", "--silent", "--output", "/dev/null", "--max-time", "2", "--write-out", "%{http_code}"]
        words = self._net.ends[request.ship].command([*words, "--request", request.method, url])
        return int(subprocess.run(words, capture_output=True, text=True, check=False).stdout or 0)

    def _decision(self, request: Request) -> dict[str, Any]:
        """The newest flow line of this ship: what was said last of its connection or request."""
        end = time.monotonic() + SWITCH_S
        while True:
            said = self._idmesh("flows", "--json", "--last", "20", "--from-pod", f"default/{request.ship}")
            flows = [json.loads(line)["flow"] for line in said.splitlines()]
            judged = [flow for flow in flows if not flow.get("is_reply")]
            if judged and judged[-1]["uuid"] not in self._told:
                self._told |= {flow["uuid"] for flow in flows}
                return dict(_most_telling(judged))
            if time.monotonic() > end:
                raise DemoError(f"no flow of {request.ship} was seen; see {self.folder / 'idmesh.log'}")
            time.sleep(0.1)

    def __post_init__(self) -> None:
        self._told: set[str] = set()
        (self.folder / "policies").mkdir(parents=True)
        (self.folder / "endpoints.yaml").write_text(_NAMESPACE)

    # ---- node, server, files ----

    @contextlib.contextmanager
    def _node(self) -> Iterator[None]:
        words = ["--policies", str(self.folder / "policies"), "--endpoints", str(self.folder / "endpoints.yaml")]
        argv = [*IDMESH, "-v", "run", *words, "--state", str(self._state.root), "--datapath", "on", "--door", "module"]
        with (self.folder / "idmesh.log").open("wb") as log:
            process = subprocess.Popen(self._inside(argv), env=self._environment(), stdout=log, stderr=log)
        try:
            self._wait_for(0, START_S, process)
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()
            process.wait()
            self._idmesh("run", "--cleanup")

    def _wait_for(self, after: int, timeout_s: float = SWITCH_S, process: subprocess.Popen[bytes] | None = None) -> int:
        """Until kernel and Envoy decide by a revision later than this; its number."""
        end = time.monotonic() + timeout_s
        while True:
            pages = [read_json(path) or {} for path in self._state.readers.glob("*.json")]
            found = {page.get("door"): int(page.get("revision") or 0) for page in pages}
            if found.keys() >= _READERS and min(found.values()) > after:
                published = int((read_json(self._state.status) or {}).get("revision") or 0)
                if min(found.values()) >= published and self._state.admin.exists():
                    return published
            if time.monotonic() > end or (process and process.poll() is not None):
                raise DemoError(f"door {DOOR}: no revision after {after} is in force; see {self.folder}/idmesh.log")
            time.sleep(0.01)

    def _idmesh(self, *words: str) -> str:
        argv = self._inside([*IDMESH, *words, "--state", str(self._state.root)])
        done = subprocess.run(argv, env=self._environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoError(done.stderr.strip())
        return done.stdout

    def _inside(self, argv: list[str]) -> list[str]:
        return self._net.node.command(argv)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, cgroups.BASE_VARIABLE: str(self._cgroup)}

    def _write_policy(self, act: Act) -> None:
        staged = self.folder / "rule1.yaml.new"
        shutil.copyfile(POLICIES / act.policy, staged)
        os.replace(staged, self.folder / "policies/rule1.yaml")

    @contextlib.contextmanager
    def _death_star(self) -> Iterator[None]:
        argv = [sys.executable, "-m", "ext_authz.demo.server", _ADDRESSES["deathstar"], "80"]
        server = subprocess.Popen(self._net.ends["deathstar"].command(argv), stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            if server.stdout.readline() != b"ready\n":
                raise DemoError("the Death Star's server did not start")
            yield
        finally:
            server.kill()
            server.wait()


def _most_telling(flows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the newest connection: the verdict on its request, if it had one."""
    port = _source_port(flows[-1])
    same = [flow for flow in flows if _source_port(flow) == port]
    return next((flow for flow in reversed(same) if flow.get("Type") == "L7"), same[-1])


def _source_port(flow: dict[str, Any]) -> int:
    return int(((flow.get("l4") or {}).get("TCP") or {}).get("source_port") or 0)


@contextlib.contextmanager
def _own_cgroup() -> Iterator[Path]:
    """Stands for all cgroups of the host: our programs hang on it instead of on the root."""
    base = cgroups.mounted()
    assert base is not None
    made = base / f"idmesh-demo-{os.getpid()}"
    made.mkdir()
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            made.rmdir()
