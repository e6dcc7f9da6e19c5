# SPDX-License-Identifier: Apache-2.0
"""The demo as users run it: real namespaces, real Envoys, and an exit code that means something."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ext_authz.agent.cgroups import mounted
from ext_authz.demo.client import Load, Request
from ext_authz.demo.scenario import DOORS, _constant, _flips_once
from ext_authz.demo.stage import Workload
from ext_authz.demo.transparent import DOOR as TRANSPARENT
from ext_authz.demo.transparent import missing

DEMO = [sys.executable, "-m", "ext_authz.cli", "demo", "--json"]
LONGEST_S = 240


def play(*words: str) -> tuple[int, list[dict], str]:
    done = subprocess.run([*DEMO, *words], capture_output=True, text=True, timeout=LONGEST_S, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.needs_envoy
@pytest.mark.needs_namespaces
def test_every_door_gives_the_expected_statuses_and_names_its_rules(tmp_path: Path) -> None:
    before = namespaces()
    code, lines, said = play("--keep", str(tmp_path / "kept"))
    rows = [line for line in lines if "ship" in line]
    switches = [line for line in lines if "in_force_ms" in line]
    assert code == 0, said
    assert {row["door"] for row in rows} >= set(DOORS)
    assert {row["door"] for row in rows} <= {*DOORS, TRANSPARENT}
    assert all(row["ok"] for row in rows)
    assert all(switch["ok"] and switch["requests"] for switch in switches)
    assert len(switches) == len(DOORS)
    for row in rows:
        assert bool(row["miss"]) == (row["status"] in (0, 403))
        if row["status"] == 200 and not row["act"].startswith("no policy"):
            assert row["policy"] == "CiliumNetworkPolicy default/rule1"
            assert "/rule1.yaml:" in row["rule"]
    assert namespaces() <= before  # those of others may end beside us


@pytest.mark.needs_envoy
@pytest.mark.needs_namespaces
def test_a_policy_that_lets_too_much_through_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's policies are copied beside it with the L7 rules opened: the demo must notice."""
    root = Path(__file__).resolve().parents[2]
    shadow = tmp_path / "ext_authz"
    shadow.mkdir()
    for item in (root / "ext_authz").iterdir():
        if item.name != "demo":
            (shadow / item.name).symlink_to(item)
    (shadow / "demo").mkdir()
    for item in (root / "ext_authz/demo").iterdir():
        if item.name != "policies":
            (shadow / "demo" / item.name).symlink_to(item)
    (shadow / "demo/policies").mkdir()
    for item in (root / "ext_authz/demo/policies").iterdir():
        text = (
            item.read_text().replace("path: /v1/request-landing", "path: /.*").replace("method: POST", "method: '.*'")
        )
        (shadow / "demo/policies" / item.name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runner = "import sys; sys.argv[0] = 'idmesh'; from ext_authz.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", runner, "demo", "--json", "--door", "module"],
        capture_output=True, text=True, timeout=LONGEST_S, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    wrong = [row for row in map(json.loads, done.stdout.splitlines()) if "ship" in row and not row["ok"]]
    assert {(row["ship"], row["request"]) for row in wrong} == {("tiefighter", "PUT /v1/exhaust-port")}


@pytest.mark.needs_envoy
@pytest.mark.needs_root
def test_the_kernel_steers_an_unmodified_curl_and_the_host_stays_as_it_was() -> None:
    if missing():
        pytest.skip(missing())
    before, mounts, cgroups = namespaces(), _demo_mounts(), _demo_cgroups()
    code, rows, said = play("--door", TRANSPARENT)
    assert code == 0, said
    assert {row["door"] for row in rows} == {TRANSPARENT}
    assert all(row["ok"] for row in rows)
    assert {row["status"] for row in rows} == {0, 200, 403}
    assert _demo_mounts() == mounts
    assert _demo_cgroups() == cgroups
    assert namespaces() <= before


def _demo_mounts() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split()[4] for line in lines if "idmesh-demo" in line}


def _demo_cgroups() -> set[Path]:
    base = mounted()
    return set(base.glob("idmesh-demo-*")) if base else set()


def load(*answers: tuple[float, float, int]) -> Load:
    made = object.__new__(Load)
    made.workload, made.request = Workload("tiefighter", "127.0.0.1"), Request("tiefighter", "GET", "/v1/")
    made.answers, made.failures = list(answers), []
    return made


def test_an_edit_may_flip_an_answer_once_and_in_time() -> None:
    assert not _flips_once(load((0, 1, 403), (2, 3, 403), (4, 5, 200), (7, 8, 200)), renamed=2.5, in_force=6)


@pytest.mark.parametrize(
    "answers",
    [
        ((0, 1, 200),),
        ((7, 8, 403),),
        ((3, 4, 200), (4, 5, 403)),
        ((3, 4, 503),),
    ],
)
def test_a_misjudged_answer_during_an_edit_is_seen(answers: tuple[tuple[float, float, int], ...]) -> None:
    assert _flips_once(load(*answers), renamed=2.5, in_force=6)


def test_a_constant_answer_that_changes_is_seen() -> None:
    assert not _constant(load((0, 1, 200)), 200)
    assert _constant(load((0, 1, 200), (1, 2, 403)), 200)


def namespaces() -> set[str]:
    """Network namespaces that processes of this machine live in, but for ones that come and go beside us."""
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if "demo" in (process / "cmdline").read_text():
                    found.add(os.readlink(process / "ns/net"))
            except OSError:
                continue
    return found


@pytest.mark.needs_envoy
@pytest.mark.needs_namespaces
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_leaves_no_file_and_shows_no_stack(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert demo.stderr is not None
    assert demo.stderr.readline()  # it has begun
    demo.send_signal(number)
    _, said = demo.communicate(timeout=LONGEST_S)
    assert demo.returncode == 130
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
