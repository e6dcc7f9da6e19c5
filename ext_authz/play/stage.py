# SPDX-License-Identifier: Apache-2.0
"""
One real Envoy in a network namespace of its own, with a listener at every address and port that probes go to.

A stage has one mode (requests, or connections) and one direction, because those are the listener's. Addresses are
the case's own, so who connects is told by nothing but the address it connects from.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from ext_authz.compiler.publish import FileTransport
from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.play.netns import Namespace
from ext_authz.play.results import PlayError
from ext_authz.play.upstream import Upstream
from ext_authz.state import State
from ext_authz.xds.setup import Direction, Door, Mode, Setup, Target, Tls

READY_S = 30.0
_COUNT_S = 6.0
_PAUSE_S = 0.002
_FLUSH_MS = 5
Place = tuple[str, int]


class Wire(StrEnum):
    """
    What the client's bytes are wrapped in.

    Where names are read, Envoy waits for the client's first bytes: listeners of their own.
    """

    CLEAR = "clear"
    PASSED = "passed-tls"
    ENDED = "ended-tls"


@dataclass(frozen=True, slots=True)
class Wiring:
    """What all stages of one run share."""

    door: Door
    envoy: EnvoyBinary
    module: Path
    folder: Path


class Stage:
    """A context manager; everything it started ends with it."""

    def __init__(self, wiring: Wiring, mode: Mode, direction: Direction, wire: Wire) -> None:
        self.mode, self.direction, self.wire = mode, direction, wire
        self.folder = wiring.folder / f"{mode}-{direction}-{wire}"
        self._wiring = wiring
        self._state = State(self.folder / "state")
        self._closing = contextlib.ExitStack()
        self._transport: FileTransport | None = None
        self._records = _Records(self.folder / "access.log")
        self.played = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def start(self, places: Iterable[Place], addresses: Iterable[str], snapshot: bytes) -> None:
        """
        Bring up namespace, servers and Envoy.

        Args:
            places: Where listeners stand.
            addresses: Every address that somebody connects from.
            snapshot: The first to be in force.
        """
        places = sorted(set(places))
        # Of an earlier run that was kept here.
        shutil.rmtree(self.folder, ignore_errors=True)
        self._state.readers.mkdir(parents=True, mode=0o700)
        self._state.root.chmod(0o700)
        self._transport = FileTransport(self._state.root)
        self._transport.publish(snapshot)
        self.namespace = Namespace()
        self._closing.callback(self.namespace.close)
        self.namespace.add_addresses([*addresses, *(address for address, _ in places)])
        upstream = Upstream(self.namespace, self.mode == Mode.HTTP)
        self._closing.callback(upstream.close)
        config = self.folder / "envoy.json"
        config.write_text(self._config(places, upstream.port))
        if self._wiring.door != Door.MODULE:
            self._run(self._service_command(), "service.log")
        self._envoy = self._run(self._envoy_command(config), "envoy.log")
        self._wait(lambda: self._admin("/ready") == "LIVE", "Envoy did not become ready")

    def publish(self, snapshot: bytes, revision: int) -> None:
        """Put a case in force; returns when the door says it decides with it."""
        assert self._transport is not None
        self._transport.publish(snapshot)
        transport = self._transport

        def is_in_force() -> bool:
            found = transport.acknowledgements()
            return bool(found) and all(reader.revision == revision for reader in found)

        self._wait(is_in_force, f"revision {revision} did not come into force")

    def record(self, client: str) -> dict[str, Any]:
        """The door's own record of the flow that came from this address and port."""
        found: dict[str, Any] = {}

        def is_there() -> bool:
            found.update(self._records.take(client) or {})
            return bool(found)

        self._wait(is_there, f"no record of the flow from {client}")
        # What Envoy answers of itself (a malformed request) no door has judged.
        self.played += bool(found.get("verdict"))
        return found

    def counted(self) -> int:
        """How many verdicts the door says it gave; services report now and then, so this waits for the last."""
        until = time.monotonic() + _COUNT_S
        while (found := self._counters()) < self.played and time.monotonic() < until:
            time.sleep(_PAUSE_S * 10)
        return found

    def _counters(self) -> int:
        if self._wiring.door != Door.MODULE:
            pages = [json.loads(path.read_bytes()) for path in self._state.readers.glob("*.json")]
            # An error is counted beside the denial it led to.
            return sum(count for page in pages for name, count in page["counts"].items() if name != "error")
        stats = {line.partition(":")[0]: line.partition(":")[2] for line in self._admin("/stats").splitlines()}
        names = [name for name in stats if name.rpartition(".")[2] in ("allowed", "denied")]
        return sum(int(stats[name]) for name in names if "idmesh" in name)

    def keep(self) -> None:
        """Leave Envoy's stats beside its configuration and log."""
        (self.folder / "stats.txt").write_text(self._admin("/stats"))

    # -- how it is wired

    def _config(self, places: Iterable[Place], upstream: int) -> str:
        from ext_authz.play.config import render

        setup = Setup(
            door=self._wiring.door,
            listen=Target("127.0.0.1"),
            upstreams=(Target("127.0.0.1", upstream),),
            mode=self.mode,
            direction=self.direction,
            destination="local",
            sni=self.wire != Wire.CLEAR,
            tls=self._tls() if self.wire == Wire.ENDED else None,
            state=self._state.root.absolute(),
            module=self._wiring.module,
            authz=(Target(path=str(self._socket("authz"))),),
            admin=Target(path=str(self._socket("admin"))),
            metadata="all",
            access_log=str(self._records.path.absolute()),
        )
        return render(setup, [Target(*place) for place in places])

    def _tls(self) -> Tls:
        """A certificate that nobody verifies; its key is gone with the folder."""
        made = Tls(self.folder.absolute() / "server.pem", self.folder.absolute() / "server.key")
        words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
        words += ["-subj", "/CN=idmesh test", "-keyout", str(made.key), "-out", str(made.certificate)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PlayError(f"openssl: {done.stderr.strip()}")
        return made

    def _socket(self, name: str) -> Path:
        return (self.folder / f"{name}.sock").absolute()

    def _service_command(self) -> list[str]:
        listen = f"unix:{self._socket('authz')}"
        return [sys.executable, "-m", "ext_authz.service.worker", "--state", str(self._state.root), "--listen", listen]

    def _envoy_command(self, config: Path) -> list[str]:
        words = [str(self._wiring.envoy.path), "-c", str(config), "--concurrency", "1", "--disable-hot-restart"]
        words += ["--file-flush-interval-msec", str(_FLUSH_MS), "--log-level", "warning"]
        return self.namespace.command(words)

    def _run(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("wb") as out:
            environment = self._wiring.envoy.environment(self._wiring.module)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
        self._closing.callback(_end, process)
        return process

    def _wait(self, condition: Callable[[], bool], problem: str) -> None:
        until = time.monotonic() + READY_S
        while not condition():
            if time.monotonic() > until or self._envoy.poll() is not None:
                raise PlayError(f"{problem}; see {self.folder / 'envoy.log'}")
            time.sleep(_PAUSE_S)

    def _admin(self, path: str) -> str:
        """Body of an answer of Envoy's admin interface, empty if there is none."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.settimeout(READY_S)
                line.connect(str(self._socket("admin")))
                line.sendall(f"GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
                answer = HTTPResponse(line)
                answer.begin()
                return answer.read().decode(errors="replace").strip()
        except (OSError, HTTPException):
            return ""


class _Records:
    """Reads the access log as it grows; records by the client's address and port."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._found: dict[str, dict[str, Any]] = {}

    def take(self, client: str) -> dict[str, Any] | None:
        if client not in self._found and self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            for line in whole.splitlines():
                record = json.loads(line)
                self._found[record["peer"]] = record
        return self._found.pop(client, None)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
