# SPDX-License-Identifier: Apache-2.0
"""Laws of a node that runs for long: what it tells of itself, its sockets, its observer, its signals, its unit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checks import POLICY, WORLD, allowed, request
from node_run import Running
from service_run import environment, wait_until

from ext_authz.commands.systemd import FILES, render
from ext_authz.process import find_processes


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    made.write("policies/web.yaml", POLICY)
    made.write("endpoints/pods.yaml", WORLD)
    yield made
    made.end()


def observer(node: Running) -> int | None:
    found = node.status()[1].get("observer")
    return found["pid"] if found else None


# ---- status ----


def test_status_tells_how_long_changes_take_to_the_readers(node: Running) -> None:
    node.words = ["--workers", "2"]
    node.start()
    for turn in range(3):
        node.write("policies/web.yaml", POLICY.replace("/public/", f"/{turn}/"))
        wait_until(lambda: node.status()[1]["propagation"]["count"] == 2 * (turn + 1), "the count")  # noqa: B023
    found = node.status()[1]["propagation"]
    assert found["buckets"][-1]["count"] == 6
    assert 0 < found["p50"] <= found["p99"] < 10
    assert 0 < found["sum"] < 60


def test_the_histogram_outlives_the_compiling_process(node: Running) -> None:
    node.start()
    node.write("policies/web.yaml", POLICY.replace("/public/", "/a/"))
    wait_until(lambda: node.status()[1]["propagation"]["count"] == 1, "the first")
    os.kill(node.status()[1]["builder"]["pid"], signal.SIGKILL)
    node.write("policies/web.yaml", POLICY.replace("/public/", "/b/"))
    wait_until(lambda: node.status()[1]["propagation"]["count"] == 2, "the second")


def test_status_tells_what_is_used_of_what_has_a_limit(node: Running) -> None:
    node.start()
    status = node.status()[1]
    pressure = status["pressure"]
    assert pressure["identities"]["global"] == {"used": 3, "limit": 65280}
    assert pressure["snapshot_bytes"]["used"] == node.state.snapshot.stat().st_size
    assert pressure["source_files"]["used"] == 2
    assert set(pressure["flows"]) == {"written", "lost"}
    assert status["readers"][0]["age_s"] >= 0
    code, out = node.command("status")
    assert code == 0
    assert "of 65280" in out


# ---- sockets ----


def test_sockets_and_directories_have_the_modes_that_the_design_says_whatever_the_umask(node: Running) -> None:
    node.umask = 0
    node.words = ["--grpc", f"unix:{node.folder}/a.sock"]
    node.start()
    wait_until(lambda: (node.state.root / "api.sock").exists(), "the read socket")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in node.state.root.iterdir()}
    assert stat.S_IMODE(node.state.root.stat().st_mode) == (0o755 if os.geteuid() == 0 else 0o700)
    assert modes.pop("api.sock") == 0o660
    assert modes.pop("admin.sock") == 0o600
    assert stat.S_IMODE((node.folder / "a.sock.0").stat().st_mode) == 0o660
    assert {modes.pop(name) for name in ("readers", "kept", "applied")} == {0o700}
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}


def test_nothing_listens_on_an_abstract_socket(node: Running) -> None:
    node.start()
    ours = set(find_processes(lambda words: os.fsencode(node.state.root) in words))
    assert ours
    held = {os.readlink(link) for pid in ours for link in _descriptors(pid)}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if f"socket:[{words[6]}]" in held:
            assert len(words) < 8 or not words[7].startswith("@"), line


def _descriptors(pid: int) -> list[Path]:
    return [link for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]


def test_a_second_node_cannot_take_over_the_address_of_the_first(node: Running, tmp_path: Path) -> None:
    node.start()
    words = ["run", "--policies", "policies", "--grpc", f"unix:{node.folder}/a.sock"]
    command = [sys.executable, "-m", "ext_authz.cli", *words, "--state", str(tmp_path / "other")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=node.folder, check=False)
    assert done.returncode == 2
    assert "another process serves it" in done.stderr
    assert allowed(node.client.check(request()))
    assert node.status()[0] == 0


# ---- the observer ----


def test_flow_lines_reach_the_nodes_own_stdout(node: Running) -> None:
    node.words = ["--flows", "-"]
    node.start()
    wait_until(lambda: observer(node), "the observer")

    def told() -> bool:
        assert allowed(node.client.check(request()))
        return "FORWARDED" in (node.folder / "out").read_text()

    wait_until(told, "a line", 20)
    assert {"flow", "node_name", "time"} <= set(json.loads((node.folder / "out").read_text().splitlines()[0]))


def test_a_killed_observer_is_started_again_and_changes_no_decision(node: Running) -> None:
    node.start()
    before = observer(node)
    assert before
    os.kill(before, signal.SIGKILL)
    assert allowed(node.client.check(request()))
    wait_until(lambda: observer(node) not in (None, before), "another observer")
    wait_until(lambda: node.status()[0] == 0, "health")


@pytest.mark.parametrize(("words", "same"), [([], True), (["--flows", "-"], False)])
def test_a_restarted_agent_adopts_the_observer_unless_it_speaks_to_the_old_stdout(
    node: Running, words: list[str], same: bool
) -> None:
    node.words = words
    node.start()
    assert node.process is not None
    before = observer(node)
    node.process.kill()
    node.process.wait()
    node.start()
    assert (observer(node) == before) == same


# ---- signals and logs ----


def test_sigusr2_leaves_the_workers_to_the_next_agent(node: Running) -> None:
    node.start()
    before = node.status()[1]["workers"]
    assert node.stop(signal.SIGUSR2) == 0
    assert allowed(node.client.check(request()))
    node.start()
    assert node.status()[1]["workers"] == before
    assert node.stop() == 0
    assert not find_processes(lambda words: os.fsencode(node.state.root) in words)


def test_the_log_is_json_in_every_process_if_it_shall_be(node: Running) -> None:
    node.words = ["--log-format", "json"]
    node.start()
    assert node.stop() == 0
    lines = [json.loads(line) for line in (node.folder / "log").read_text().splitlines()]
    assert {"ext_authz.agent.building", "ext_authz.service.follow"} <= {line["at"] for line in lines}
    assert all({"time", "level", "msg"} <= set(line) for line in lines)
    published = next(line for line in lines if line["msg"] == "snapshot published")
    assert isinstance(published["revision"], int)


# ---- the unit ----


def test_the_unit_is_what_systemd_takes(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is missing (package systemd)")
    command = [sys.executable, "-m", "ext_authz.cli", "systemd", "install", "--root", str(tmp_path)]
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    units = [tmp_path / place for name, place in FILES.items() if name.endswith((".service", ".mount"))]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all((tmp_path / place).stat().st_mode & 0o777 == 0o644 for place in FILES.values())


def test_the_unit_signals_the_agent_alone() -> None:
    """Any other mode would end Envoy with the agent, and every connection with it."""
    words = dict(line.split("=", 1) for line in render("idmesh.service").splitlines() if "=" in line and line[0] != "#")
    assert words["KillMode"] == "process"
    assert words["RestartKillSignal"] == "SIGUSR2"
    assert words["Type"] == "notify"
    assert words["Restart"] == "always"
    assert words["NoNewPrivileges"] == "yes"
    assert words["ProtectSystem"] == "strict"
    assert words["ExecStart"].startswith("/")
    assert "0755 root idmesh" in render("tmpfiles.conf")


def test_systemd_gets_a_sign_of_life_in_time(node: Running) -> None:
    path = node.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(20)
        node.extra = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"}
        node.start()
        while systemd.recv(4096) != b"WATCHDOG=1":
            pass
