# SPDX-License-Identifier: Apache-2.0
"""
Envoys, a backend and wrk for the load tables.

Envoy's one worker has core 0; its other threads, nginx, wrk and this process share core 1. All on loopback.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ext_authz.envoy_binary import MODULE, EnvoyNotFound, find_envoy
from ext_authz.state import State, write_atomic
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Setup, Target
from tests.load import machine
from tests.load.generate import Request

WORKER_CORE, REST_CORE = 0, 1
CONNECTIONS = 16
BUSY = 0.93
_WORKER = "wrk:worker_0"
_REQUESTS = re.compile(r"^\s+(\d+) requests in", re.MULTILINE)
_LASTED = re.compile(r"^lasted (\d+) us", re.MULTILINE)  # without its start
_NGINX = """\
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{port} backlog=1024; location / {{ return 200 "ok\\n"; }} }}
}}
"""
_LUA = """\
local requests = {{}}
for line in io.lines("{file}") do
  local method, path, tenant = line:match("^(%S+) (%S+) ?(%S*)$")
  local headers = {{ Host = "server" }}
  if tenant ~= "" then headers["X-Tenant"] = tenant end
  requests[#requests + 1] = wrk.format(method, path, headers)
end
local at = 0
request = function()
  at = at % #requests + 1
  return requests[at]
end
done = function(summary)
  io.write(string.format("lasted %d us\\n", summary.duration))
end
"""


@dataclass(frozen=True)
class Sample:
    """One run of load. busy: share of the wall time the worker ran."""

    requests_per_s: float
    cpu_us: float  # of Envoy's worker, per request
    busy: float


@dataclass
class Proxy:
    """A running Envoy with one worker."""

    port: int
    process: subprocess.Popen[bytes]
    worker: Path  # its task directory in /proc

    def load(self, script: Path, seconds: float) -> Sample:
        """Closed loop of wrk, measured from outside."""
        argv = ["taskset", "-c", str(REST_CORE), machine.need("wrk", "wrk"), "-t1", f"-c{CONNECTIONS}"]
        argv += [f"-d{max(1, round(seconds))}s", "-s", str(script), f"http://127.0.0.1:{self.port}/"]
        cpu = machine.cpu_seconds(self.worker)
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        used = machine.cpu_seconds(self.worker) - cpu
        found, lasted = _REQUESTS.search(said), _LASTED.search(said)
        if not found or not lasted or "Non-2xx" in said or "Socket errors" in said:
            raise RuntimeError(f"the load went wrong:\n{said}")
        count, wall = int(found.group(1)), int(lasted.group(1)) / 1e6
        return Sample(count / wall, used / count * 1e6, used / wall)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """A backend that answers "ok"; gives its port."""
    port = free_port()
    folder.mkdir(parents=True)
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port))
    program = machine.need("nginx", "nginx-light")
    process = subprocess.Popen(["taskset", "-c", str(REST_CORE), program, "-p", str(folder), "-c", str(config)])
    try:
        _wait_for(port, process)
        yield port
    finally:
        _stop(process)


@contextlib.contextmanager
def envoy(setup: Setup, folder: Path) -> Iterator[Proxy]:
    """An Envoy of this setup, its worker pinned."""
    try:
        binary = find_envoy()
    except EnvoyNotFound as error:
        raise machine.Missing(str(error)) from error
    folder.mkdir(parents=True)
    config = folder / "envoy.json"
    config.write_text(render(setup))
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(
            [binary.path, "-c", config, "--concurrency", "1", "--use-dynamic-base-id", "-l", "warning"],
            stdout=log, stderr=log, env=binary.environment(MODULE),
        )  # fmt: skip
    try:
        _wait_for(setup.listen.port, process)
        yield Proxy(setup.listen.port, process, _pin(process.pid))
    finally:
        _stop(process)


def publish(state: Path, snapshot: bytes) -> Path:
    """A state directory with this snapshot in force."""
    State(state).prepare()
    write_atomic(State(state).snapshot, snapshot)
    return state


def listener() -> Target:
    return Target(host="127.0.0.1", port=free_port())


def write_script(requests: Sequence[Request], folder: Path, name: str) -> Path:
    """The wrk script that sends these requests in turn."""
    lines = [f"{r.method} {r.path} {r.headers[0][1] if r.headers else ''}".rstrip() for r in requests]
    listing = folder / f"{name}.txt"
    listing.write_text("\n".join(lines) + "\n")
    script = folder / f"{name}.lua"
    script.write_text(_LUA.format(file=listing))
    return script


def envoy_version() -> str:
    """Build hash and version of the Envoy measured."""
    said = subprocess.run([find_envoy().path, "--version"], capture_output=True, text=True, check=True).stdout
    return said.strip().rpartition("version: ")[2]


def _pin(pid: int) -> Path:
    end = time.monotonic() + 20
    while True:
        # Its port may be open before it has its worker.
        for task in Path(f"/proc/{pid}/task").iterdir():
            name = (task / "comm").read_text().strip()
            os.sched_setaffinity(int(task.name), {WORKER_CORE if name == _WORKER else REST_CORE})
            if name == _WORKER:
                return _pin_rest(task)
        if time.monotonic() > end:
            raise RuntimeError("Envoy has no worker thread")
        time.sleep(0.02)


def _pin_rest(worker: Path) -> Path:
    for task in worker.parent.iterdir():
        if task != worker:
            os.sched_setaffinity(int(task.name), {REST_CORE})
    return worker


def _wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"process {process.args!r} does not listen") from None
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
