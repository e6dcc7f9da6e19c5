# SPDX-License-Identifier: Apache-2.0
"""Laws of `idmesh run`: the whole node in processes of its own, asked over real gRPC."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checks import OTHER, POLICY, WORLD, allowed, facts, request
from node_run import Running
from service_run import environment, wait_until

from ext_authz.service.pool import is_worker


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    made.write("policies/web.yaml", POLICY)
    made.write("endpoints/pods.yaml", WORLD)
    yield made
    made.end()


def test_a_change_of_policy_is_in_force_within_100_ms_of_the_rename(node: Running) -> None:
    node.start()
    client, took = node.client, []
    assert allowed(client.check(request()))
    for turn in range(8):
        closing = turn % 2 == 0
        node.write("policies/web.yaml", POLICY.replace("/public/", "/elsewhere/") if closing else POLICY)
        took.append(wait_until(lambda: allowed(client.check(request())) != closing, "the change"))  # noqa: B023
    assert sorted(took)[len(took) // 2] < 0.1, took


def test_status_says_what_is_in_force_and_exits_0(node: Running) -> None:
    node.start()
    code, out = node.command("status", "--json")
    status = json.loads(out)
    assert code == 0
    assert status["healthy"]
    assert status["revision"] >= 1
    assert [reader["door"] for reader in status["readers"]] == ["ext-authz"]
    assert status["readers"][0]["digest"] == status["digest"]
    assert status["counts"]["endpoints"] == 3


def test_status_without_a_node_exits_2(node: Running) -> None:
    assert node.command("status")[0] == 2


def test_a_bad_policy_shows_in_status_with_its_line_and_keeps_the_last(node: Running) -> None:
    node.start()
    node.write("policies/web.yaml", POLICY.replace("fromEndpoints", "fromEndpoint"))
    wait_until(lambda: node.status()[1]["error_count"], "the error")
    code, status = node.status()
    assert code == 1
    assert status["errors"][0]["file"].endswith("web.yaml")
    assert status["errors"][0]["line"] > 1
    assert status["kept"] == ["CiliumNetworkPolicy default/web"]
    assert allowed(node.client.check(request()))
    node.write("policies/web.yaml", POLICY)
    wait_until(lambda: node.status()[0] == 0, "health")


def test_a_file_that_is_still_being_written_denies_nothing(node: Running) -> None:
    """A new object cut in the middle would close the node, if it were taken for finished."""
    node.start()
    client, new = node.client, POLICY.replace("name: web", "name: new").replace("app: server", "app: other")
    with open(node.folder / "policies/new.yaml", "w") as file:
        for part in (new[:100], new[100:]):
            file.write(part)
            file.flush()
            until = time.monotonic() + 0.03
            while time.monotonic() < until:
                assert allowed(client.check(request()))
    wait_until(lambda: node.status()[1]["counts"]["policies"] == 2, "the new policy")
    assert node.status()[0] == 0


def test_standing_warnings_stay_in_status(node: Running) -> None:
    open_rule = POLICY.replace("spec:\n", "spec:\n  enableDefaultDeny: {ingress: false}\n")
    node.write("policies/web.yaml", open_rule)
    node.start()
    standing = node.status()[1]["standing"]
    assert any("enableDefaultDeny" in warning["reason"] and warning["line"] for warning in standing), standing


def test_an_unmounted_source_changes_no_decision_even_over_a_restart(node: Running) -> None:
    node.start()
    shutil.rmtree(node.folder / "policies")
    wait_until(lambda: node.status()[1].get("error_count"), "the error")
    assert allowed(node.client.check(request()))
    assert not allowed(node.client.check(request(OTHER)))
    assert node.stop() == 0
    node.start()
    assert allowed(node.client.check(request()))
    assert not allowed(node.client.check(request(OTHER)))


def test_a_killed_agent_changes_nothing_decided_and_is_succeeded(node: Running) -> None:
    node.start()
    assert node.process is not None
    node.process.send_signal(signal.SIGKILL)
    node.process.wait()
    client = node.client
    assert allowed(client.check(request()))
    node.start()
    node.write("policies/web.yaml", POLICY.replace("/public/", "/elsewhere/"))
    wait_until(lambda: not allowed(node.client.check(request())), "the change")


def test_a_killed_compiling_process_is_replaced(node: Running) -> None:
    node.start()
    builder = node.status()[1]["builder"]["pid"]
    os.kill(builder, signal.SIGKILL)
    assert allowed(node.client.check(request()))
    node.write("policies/web.yaml", POLICY.replace("/public/", "/elsewhere/"))
    wait_until(lambda: not allowed(node.client.check(request())), "the change")


def test_a_killed_compiling_process_is_replaced_though_nothing_changes(node: Running) -> None:
    node.start()
    builder = node.status()[1]["builder"]["pid"]
    time.sleep(1.5)  # until the poll has seen what there is
    os.kill(builder, signal.SIGKILL)
    wait_until(lambda: node.status()[1]["builder"]["pid"] not in (builder, None), "another")
    assert node.status()[1]["failure"] == ""


def test_revisions_only_rise_over_a_restart(node: Running) -> None:
    node.start()
    before = int(facts(node.client.check(request()))["revision"])
    assert node.stop() == 0
    node.write("policies/web.yaml", POLICY.replace("/public/", "/public/a/"))
    node.start()
    assert int(facts(node.client.check(request()))["revision"]) > before


def test_numbers_stay_the_same_over_a_restart(node: Running) -> None:
    node.start()
    before = node.command("identity", "list", "--json")
    assert node.stop() == 0
    node.start()
    assert node.command("identity", "list", "--json") == before


def test_sigterm_ends_everything_the_node_started(node: Running) -> None:
    node.words = ["--workers", "2"]
    node.start()
    pids = [reader["pid"] for reader in node.status()[1]["readers"]]
    assert len(pids) == 2
    assert node.stop() == 0
    assert not any(is_worker(pid, node.state.root) for pid in pids)
    assert not list(node.folder.glob("a.sock*"))


def test_sighup_stops_nothing(node: Running) -> None:
    node.start()
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)
    node.write("policies/web.yaml", "broken: [")
    wait_until(lambda: node.status()[0] == 1, "the error in status")
    assert node.process.poll() is None


def test_two_nodes_never_share_a_state_directory(node: Running) -> None:
    node.start()
    code, _ = node.command("run", "--policies", "policies")
    assert code == 2
    assert allowed(node.client.check(request()))


def test_systemd_hears_ready_only_when_requests_are_answered(node: Running) -> None:
    path = node.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(20)
        node.extra = {"NOTIFY_SOCKET": str(path)}
        node.start()
        said = systemd.recv(4096).decode()
        while "READY=1" not in said:
            said = systemd.recv(4096).decode()
        assert allowed(node.client.check(request()))
        node.stop()
        while "STOPPING=1" not in said:
            said = systemd.recv(4096).decode()


@pytest.mark.parametrize(
    "words",
    [
        ["--grpc", "0.0.0.0:9000"],
        ["--door", "module"],
        ["--listen", "127.0.0.1:1"],
        ["--flows", "missing/flows"],
        ["--set", "nonsense=1"],
        ["--workers", "0"],
        ["--concurrency", "-1"],
        ["--grace", "nan"],
        ["--envoy", "missing.yaml"],
    ],
)
def test_words_that_cannot_be_are_refused_with_exit_2(node: Running, words: list[str]) -> None:
    command = [sys.executable, "-m", "ext_authz.cli", "run", "--state", str(node.state.root), "--policies", "p", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, cwd=node.folder, timeout=20, check=False)
    assert done.returncode == 2
    assert done.stderr
    assert b"Traceback" not in done.stderr
