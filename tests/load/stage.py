# SPDX-License-Identifier: Apache-2.0
"""Envoys with one door each over one backend: what the module's and the latency table put on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ext_authz.envoy_binary import MODULE
from ext_authz.state import State, read_json
from ext_authz.xds.setup import Door, RbacRule, Setup, Target
from tests.load.authz import server
from tests.load.flows import snapshot_of
from tests.load.generate import Object, Scale, mix_objects, scale
from tests.load.proxies import REST_CORE, Proxy, envoy, listener, nginx, publish

DESTINATION = "default/server:80"
NO_RECORDS = 0


class Stage:
    """Starts Envoys; `running` holds each with the script of its requests."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._backend = Target(host="127.0.0.1", port=stack.enter_context(nginx(folder / "nginx")))
        self.running: dict[str, tuple[Proxy, Path]] = {}
        self.states: dict[str, State] = {}  # of modules

    def start(self, name: str, script: Path, **fields: object) -> None:
        """An Envoy of this setup."""
        setup = Setup(listen=listener(), upstreams=(self._backend,), module=MODULE, **fields)  # type: ignore[arg-type]
        self.running[name] = (self._stack.enter_context(envoy(setup, self._folder / name)), script)

    def module(self, name: str, script: Path, snapshot: bytes, ring_bytes: int | None = None) -> State:
        """An Envoy with the module; its state directory. ring_bytes None: records as by default."""
        state = publish(self._folder / f"state-{name}", snapshot)
        self.start(name, script, door=Door.MODULE, state=state, destination=DESTINATION, flow_ring_bytes=ring_bytes)
        self.states[name] = State(state)
        return State(state)

    def flows(self) -> dict[str, dict[str, int]]:
        """Flow records written and lost so far, by module; they are told of each second."""
        found = {}
        for name, state in self.states.items():
            pages = [read_json(path) or {} for path in state.readers.glob("*.json")]
            found[name] = next((page["flows"] for page in pages if page.get("flows")), {"written": 0, "lost": 0})
        return found

    def rbac(self, name: str, script: Path, rules: list[Object]) -> None:
        """An Envoy with its own RBAC filter and these rules."""
        made = tuple(RbacRule(rule["path"], rule.get("method", "")) for rule in rules)
        self.start(name, script, door=Door.RBAC, rbac=made)

    def service(self, name: str, script: Path, snapshot: bytes, door: Door) -> None:
        """An Envoy that asks a worker of ours, which runs where everything else does."""
        state = publish(self._folder / f"state-{name}", snapshot)
        listen = self._folder / f"{name}.sock"
        words = ["ext_authz.service.worker", "--state", str(state), "--listen", f"unix:{listen}", "--log", "ERROR"]
        pin(self._stack.enter_context(server(words, listen)))
        self.start(name, script, door=door, authz=(Target(path=str(listen)),), destination=DESTINATION)


@contextmanager
def observer(state: State, folder: Path, lines: bool = False) -> Iterator[None]:
    """Reads the rings of a state directory, after everything else on its core; lines: each flow goes into a file."""
    argv = ["nice", "-n", "10", sys.executable, "-m", "ext_authz.flow.observer", "--state", str(state.root)]
    argv += ["--flows", str(folder / f"{state.root.name}.flows")] if lines else []
    with (folder / f"{state.root.name}.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        pin(process.pid)
        yield
    finally:
        process.terminate()
        process.wait(20)


def pin(pid: int) -> None:
    """Keep a process off the core that Envoy's worker has."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {REST_CORE})


def bare_rules(count: int) -> list[Object]:
    """The mix without header conditions, which Envoy's filter would need another matcher for."""
    rules = mix_objects(count)[-1]["spec"]["ingress"][0]["toPorts"][0]["rules"]["http"]
    return [{key: value for key, value in rule.items() if key != "headers"} for rule in rules]


def paths_snapshot(rules: list[Object]) -> bytes:
    """A snapshot with these rules for the mix's client."""
    objects = mix_objects(1)
    objects[-1]["spec"]["ingress"][0]["toPorts"][0]["rules"]["http"] = rules
    return snapshot_of(_on_loopback(objects))


def mix_snapshot(rules: int, endpoints: int = 0) -> bytes:
    """A snapshot with the mix, and so many endpoints besides."""
    others = scale(Scale(0, endpoints, max(1, endpoints // 5))) if endpoints else []
    return snapshot_of([*_on_loopback(mix_objects(rules)), *others])


def _on_loopback(objects: list[Object]) -> list[Object]:
    """The mix's client stands on loopback, where requests come from; its server out of the others' way."""
    addresses = {"client": "127.0.0.1", "server": "192.0.2.1"}
    for item in objects:
        if item["kind"] == "Pod" and item["metadata"]["name"] in addresses:
            item["status"]["podIPs"] = [{"ip": addresses[item["metadata"]["name"]]}]
    return objects
