# SPDX-License-Identifier: Apache-2.0
"""A whole node for tests: `idmesh run` in processes of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service_run import Client, environment, wait_until

from ext_authz.agent.status import read_status
from ext_authz.commands.status import as_record
from ext_authz.process import find_processes
from ext_authz.state import State, read_json


@dataclass
class Running:
    """A node of the test's own."""

    folder: Path
    words: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    extra: dict[str, str] = field(default_factory=dict)
    umask: int = -1

    @property
    def state(self) -> State:
        return State(self.folder / "state")

    @property
    def client(self) -> Client:
        return Client(f"unix:{self.folder}/a.sock.0")

    def write(self, name: str, text: str) -> None:
        """As editors and mounts do it: by rename."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}")
        staged.write_text(text)
        staged.rename(path)

    def start(self) -> None:
        command = [sys.executable, "-m", "ext_authz.cli", "run", "--state", str(self.state.root)]
        command += ["--policies", str(self.folder / "policies"), "--endpoints", str(self.folder / "endpoints")]
        command += ["--grpc", f"unix:{self.folder}/a.sock", *self.words]
        with open(self.folder / "log", "ab") as log, open(self.folder / "out", "ab") as out:
            self.process = subprocess.Popen(
                command,
                env=environment() | {"PYTHONFAULTHANDLER": "1"} | self.extra,
                stdout=out,
                stderr=log,
                cwd=self.folder,
                umask=self.umask,
            )
        wait_until(self._ready, "the node", 20)

    def _ready(self) -> bool:
        page, code, status = read_json(self.state.status) or {}, *self.status()
        if self.process is None or page.get("pid") != self.process.pid:
            return False  # what an earlier agent left
        workers = set(status.get("workers") or ())
        return code != 2 and bool(workers) and workers <= {reader["pid"] for reader in status["readers"]}

    def command(self, *words: str) -> tuple[int, str]:
        return self.run(*words)[:2]

    def run(self, *words: str, cwd: Path | None = None) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of one of the other commands."""
        command = [sys.executable, "-m", "ext_authz.cli", *words, "--state", str(self.state.root)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, cwd=cwd)
        return done.returncode, done.stdout, done.stderr

    def status(self) -> tuple[int, dict[str, Any]]:
        """As the command gives it, without starting a process for it."""
        found = read_status(self.state)
        return 2 if found.pid is None else int(not found.healthy), as_record(found)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler says where it stands
            self.process.wait()
            raise AssertionError((self.folder / "log").read_text()[-5000:]) from None

    def end(self) -> None:
        """Whatever state it is in: nothing of it is left."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        root = os.fsencode(self.state.root)
        for pid in find_processes(lambda words: root in words):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
