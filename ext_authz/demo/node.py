# SPDX-License-Identifier: Apache-2.0
"""One door of the demo: `idmesh run` with a stock Envoy, as a user would start them, and what they report."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ext_authz.state import State, read_json

IDMESH = [sys.executable, "-m", "ext_authz.cli"]
START_S, SWITCH_S, STOP_S = 30.0, 10.0, 15.0


class DemoError(Exception):
    """The demo could not be played; the message says what did not come up, and where its log is."""


@dataclass(frozen=True)
class Decision:
    """What the door itself wrote about a request, in Envoy's access log."""

    method: str
    path: str
    status: int
    revision: int
    policy: str
    rule: str  # FILE:LINE
    source: str
    destination: str


class Node:
    """A running node with one door; a context manager."""

    def __init__(self, door: str, folder: Path, policies: Path, endpoints: Path, listen: str, upstream: str) -> None:
        self.door = door
        self.state = State(folder / "state")
        self.access_log = folder / "access.log"
        self._log = folder / "idmesh.log"
        self._listen = listen
        self._read = 0
        folder.mkdir(parents=True)
        self.state.root.mkdir(mode=0o700)
        grpc = ["--grpc", f"unix:{self.state.root}/authz.sock"] if door != "module" else []
        config = folder / "envoy.json"
        config.write_text(self._generate(door, listen, upstream, grpc))
        self._argv = [
            *IDMESH, "-v", "run", "--policies", str(policies), "--endpoints", str(endpoints),
            "--state", str(self.state.root), "--envoy", str(config), *grpc,
            "--envoy-arg=--file-flush-interval-msec", "--envoy-arg=50",
        ]  # fmt: skip

    def __enter__(self) -> Node:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log)
        try:
            self.wait_for(0, START_S)
            self._wait_for_listener()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def host(self) -> str:
        """What the ships send as Host."""
        return self._listen

    @property
    def revision(self) -> int:
        """Revision that every reader of the door has loaded; 0 while one has none."""
        found = [read_json(path) or {} for path in self.state.readers.glob("*.json")]
        if not found or not all(reader.get("ready") for reader in found):
            return 0
        return min(int(reader.get("revision", 0)) for reader in found)

    def wait_for(self, after: int, timeout_s: float = SWITCH_S) -> int:
        """
        Wait until the door decides from a revision later than `after`, and return it.

        Raises:
            DemoError: It did not, in time.
        """
        end = time.monotonic() + timeout_s
        while (revision := self.revision) <= after:
            if self._process.poll() is not None or time.monotonic() > end:
                raise DemoError(f"door {self.door}: no revision after {after} came into force; see {self._log}")
            time.sleep(0.002)
        return revision

    def _wait_for_listener(self) -> None:
        host, _, port = self._listen.rpartition(":")
        end = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise DemoError(f"door {self.door}: Envoy does not listen: {error}; see {self._log}") from error
            time.sleep(0.02)

    def decisions(self, count: int) -> list[Decision]:
        """The next `count` lines of the access log (Envoy writes them a little after the answer)."""
        end = time.monotonic() + SWITCH_S
        while True:
            lines = self.access_log.read_bytes().split(b"\n")[:-1] if self.access_log.exists() else []
            if len(lines) >= self._read + count:
                break
            if time.monotonic() > end:
                raise DemoError(f"door {self.door}: Envoy logged too little; see {self.access_log}")
            time.sleep(0.02)
        fresh = lines[self._read : self._read + count]
        self._read += count
        return [_decision(json.loads(line)) for line in fresh]

    def _generate(self, door: str, listen: str, upstream: str, grpc: list[str]) -> str:
        argv = [
            *IDMESH, "envoy", "--door", door, "--listen", listen, "--upstream", upstream, *grpc,
            "--state", str(self.state.root), "--admin", f"unix:{self.state.root}/envoy.sock",
            "--access-log", str(self.access_log), "--metadata", "all",
        ]  # fmt: skip
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DemoError(done.stderr.strip())
        return done.stdout


def _decision(line: dict[str, Any]) -> Decision:
    return Decision(
        method=line.get("method") or "",
        path=line.get("path") or "",
        status=int(line.get("status") or 0),
        revision=int(line.get("revision") or 0),
        policy=line.get("policy") or "",
        rule=line.get("rule") or "",
        source=line.get("source") or "",
        destination=line.get("destination") or "",
    )
