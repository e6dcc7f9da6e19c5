# SPDX-License-Identifier: Apache-2.0
"""Laws of flow lines from end to end: what Envoy's clients met is what the node tells, through every door."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from envoy_harness import CLIENT, OTHER, ROOT, SERVER, wait_until
from envoy_run import Run

from ext_authz.flow.sink import read_rotated
from ext_authz.process import find_processes

DOORS = ["module", "ext-authz", "ext-proc"]


def idmesh(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ext_authz.cli", *words]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def ask(run: Run, source: str, path: str) -> tuple[int, str]:
    """Status, and the decision's id if the request was denied."""
    connection = http.client.HTTPConnection(SERVER, run.port, timeout=10, source_address=(source, 0))
    try:
        connection.request("GET", path, headers={"Authorization": "Bearer s3cr3t"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("x-idmesh-decision-id", "")
    finally:
        connection.close()


def lines(file: Path, **facts: Any) -> list[dict[str, Any]]:
    flows = [json.loads(line)["flow"] for line in read_rotated(file)] if file.exists() else []
    return [flow for flow in flows if all(flow.get(key) == value for key, value in facts.items())]


@pytest.mark.needs_envoy
@pytest.mark.parametrize("door", DOORS)
def test_every_request_is_a_line_with_its_policy_and_id(run: Run, tmp_path: Path, door: str) -> None:
    file = tmp_path / "flows.json"
    run.start(*run.door(door), "--flows", str(file))
    # Rings are handed over within a second.
    wait_until(lambda: lines(file), "the first line", 20)
    assert ask(run, CLIENT, "/public/mine?token=s3cr3t")[0] == 200
    status, private = ask(run, CLIENT, "/private")
    assert status == 403
    status, other = ask(run, OTHER, "/public/x")
    assert status == 403
    wait_until(lambda: lines(file, uuid=private) and lines(file, uuid=other), "the denials", 20)
    _check_denials(lines(file, uuid=private)[0], lines(file, uuid=other)[0], door)
    # Told at its end, which need not be before the others' beginning.
    wait_until(lambda: _passed(file), "the request that passed", 20)
    passed = _passed(file)
    assert passed[0]["source"]["pod_name"] == "client"
    assert passed[0]["ingress_allowed_by"][0]["kind"] == "CiliumNetworkPolicy"
    if door != "ext-authz":  # which sees no answers
        wait_until(lambda: lines(file, uuid=passed[0]["uuid"], is_reply=True), "the answer", 20)
        (reply,) = lines(file, uuid=passed[0]["uuid"], is_reply=True)
        assert reply["l7"]["http"]["code"] == 200
        assert reply["destination"]["pod_name"] == "client"
    assert "s3cr3t" not in file.read_text()
    _check_counts(run)
    _check_commands(run, file, private)


def _passed(file: Path) -> list[dict[str, Any]]:
    return [flow for flow in lines(file, verdict="FORWARDED") if "/public/mine" in flow["Summary"]]


def _check_denials(private: dict[str, Any], other: dict[str, Any], door: str) -> None:
    own = private["extensions"]["value"]
    assert (private["verdict"], own["door"], own["revision"] > 0) == ("DROPPED", door, True)
    assert own["rule"].rpartition(":")[0].endswith("p.yaml")
    assert private["ingress_denied_by"]
    assert private["l7"]["http"]["url"].endswith("/private")
    assert (other["verdict"], other["drop_reason_desc"]) == ("DROPPED", "POLICY_DENIED")
    assert other["source"]["pod_name"] == "other"
    assert other["destination"]["pod_name"] == "server"


def _check_counts(run: Run) -> None:
    """Readers count their decisions themselves, exactly."""

    def denied() -> bool:
        pages = [json.loads(page.read_bytes()) for page in run.state.readers.glob("*.json")]
        return [page["counts"]["denied"] for page in pages] == [2] and all(p["counts"]["allowed"] > 1 for p in pages)

    wait_until(denied, "the reader's counts", 20)


def _check_commands(run: Run, file: Path, denied: str) -> None:
    """`idmesh flows` and `idmesh explain --decision`, from the node and from the file."""
    state = ["--state", str(run.state.root)]
    shown = idmesh("flows", *state, "--verdict", "DROPPED", "--path", "^/private", "--json")
    assert [json.loads(line)["flow"]["uuid"] for line in shown.stdout.splitlines()] == [denied], shown.stderr
    assert denied in idmesh("flows", "--file", str(file), "--uuid", denied).stdout
    paths = [str(run.folder / "policies"), str(run.folder / "endpoints")]
    for where in (state, ["--file", str(file)]):
        told = idmesh("explain", *paths, "--decision", denied, *where)
        assert told.returncode == 1, told.stderr
        assert told.stdout.endswith("denied, as recorded\n")
    run.write("[{path: '/private'}]")
    told = idmesh("explain", *paths, "--decision", denied, "--file", str(file), "--json")
    assert told.returncode == 0
    answer = json.loads(told.stdout)
    assert (answer["result"], answer["as_recorded"], answer["recorded"]["uuid"]) == ("allowed", False, denied)


@pytest.mark.needs_envoy
def test_follow_shows_what_comes_and_ends_with_the_node(run: Run) -> None:
    run.start(*run.door("module"))
    wait_until((run.state.root / "api.sock").exists, "the observer", 30)
    command = [sys.executable, "-m", "ext_authz.cli", "flows", "--state", str(run.state.root), "--follow"]
    follow = subprocess.Popen(
        [*command, "--http-status", "4+"], env=dict(os.environ, PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert follow.stdout is not None

    def asked() -> bool:
        # Until the command listens and the rings are handed over nothing is shown.
        ask(run, CLIENT, "/private")
        return bool(shown)

    shown: list[str] = []
    reader = threading.Thread(target=lambda: shown.extend(iter(follow.stdout.readline, "")), daemon=True)
    reader.start()
    wait_until(asked, "a line", 30)
    assert "default/client" in shown[0]
    assert "http-request DROPPED" in shown[0]
    assert "\x1b" not in shown[0]
    run.stop()
    assert follow.wait(20) == 2
    assert follow.stderr is not None
    assert "observer" in follow.stderr.read()


@pytest.mark.needs_envoy
def test_connections_are_lines_with_their_ends(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "flows.json"
    run.write("")  # at L4
    run.start(*run.door("module"), "--mode", "tcp", "--flows", str(file))
    wait_until(lambda: lines(file), "the first line", 20)
    assert ask(run, CLIENT, "/any")[0] == 200
    assert run.status(OTHER, "/any") == 0
    wait_until(lambda: lines(file, verdict="DROPPED"), "the denial", 20)
    denied = lines(file, verdict="DROPPED")[0]
    assert (denied["Type"], denied["event_type"]) == ("L3_L4", {"type": 5})
    assert (denied["drop_reason_desc"], denied["source"]["pod_name"]) == ("POLICY_DENIED", "other")
    opened = lines(file, verdict="FORWARDED", event_type={"type": 5})[-1]
    assert opened["source"]["pod_name"] == "client"
    wait_until(lambda: lines(file, uuid=opened["uuid"], event_type={"type": 4}), "its end", 20)
    (ended,) = lines(file, uuid=opened["uuid"], event_type={"type": 4})
    assert ended["extensions"]["value"]["duration_ns"] > 0
    assert ended["IP"] == opened["IP"]


@pytest.mark.needs_envoy
@pytest.mark.parametrize("door", DOORS)
def test_a_killed_observer_changes_no_verdict_and_comes_back(run: Run, tmp_path: Path, door: str) -> None:
    file = tmp_path / "flows.json"
    run.start(*run.door(door), "--flows", str(file))
    wait_until(lambda: lines(file), "the first line", 20)
    for _ in range(3):
        observers = find_processes(
            lambda words: b"ext_authz.flow.observer" in words and os.fsencode(run.state.root) in words
        )
        for pid in observers:
            os.kill(pid, signal.SIGKILL)
        for _ in range(10):
            assert ask(run, CLIENT, "/public/x")[0] == 200
            status, denied = ask(run, CLIENT, "/private")
            assert status == 403
        # What was decided meanwhile waited in the ring.
        wait_until(lambda: lines(file, uuid=denied), "the last denial", 30)  # noqa: B023
