# SPDX-License-Identifier: Apache-2.0
"""A node with an Envoy of its own before a backend, as `idmesh run --door` starts it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from envoy_backend import Backend
from envoy_harness import CLIENT, ROOT, SERVER, WORLD, policy, wait_until

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
    broken: str = ""  # Python that runs in the agent first

    @property
    def state(self) -> State:
        return State(self.folder / "state")

    def write(self, rules: str) -> None:
        staged = self.folder / "policies/.p"
        staged.write_text(policy(rules))
        staged.rename(self.folder / "policies/p.yaml")

    def _command(self, *words: str) -> list[str]:
        begin = f"{self.broken}\nimport sys\nfrom ext_authz.cli import main\nsys.exit(main())"
        command = [sys.executable, *(["-c", begin] if self.broken else ["-m", "ext_authz.cli"])]
        command += ["run", "--state", str(self.state.root), "--policies", str(self.folder / "policies")]
        return [*command, "--endpoints", str(self.folder / "endpoints"), *words]

    def _environment(self) -> dict[str, str]:
        return dict(os.environ, PYTHONPATH=str(ROOT), IDMESH_ENVOY=str(self.envoy.path))

    def fails(self, *words: str) -> str:
        """What a node says that does not start. Into a file: what it leaves running would hold a pipe open."""
        said = self.folder / "said"
        with open(said, "wb") as log:
            code = subprocess.run(
                self._command(*words), env=self._environment(), stdout=log, stderr=log, check=False, timeout=30
            ).returncode
        assert code == 2
        return said.read_text()

    def launch(self, *words: str) -> None:
        """Start it, and wait for nothing."""
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self._command(*words), env=self._environment(), stderr=log, stdout=log, umask=self.umask
            )

    def start(self, *words: str) -> None:
        """Wait until it judges."""
        self.launch(*words)
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

    def kill(self) -> None:
        """The agent alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def ends(self) -> int:
        """Exit code of an agent that ends by itself."""
        assert self.process is not None
        return self.process.wait(30)

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


def ended(pid: int) -> bool:
    """Gone, or waiting to be collected by whoever adopted it."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def prepared(folder: Path, envoy: EnvoyBinary, backend: Backend) -> Run:
    """Not started. CLIENT may ask for /public/."""
    with socket.create_server((SERVER, 0)) as free:
        port = free.getsockname()[1]
    made = Run(folder, port, envoy, backend)
    for name in ("policies", "endpoints"):
        (folder / name).mkdir()
    (folder / "endpoints/pods.yaml").write_text(WORLD)
    made.write(RULES)
    return made
