# SPDX-License-Identifier: Apache-2.0
"""idmesh test --via bpf: every probe of the tables that asks about L3/L4 gets the kernel's answer, and it is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ext_authz.casefile import REQUESTS, read
from tests.conftest import missing

ROOT = Path(__file__).resolve().parents[2]
CASES = [ROOT / "tests/cases" / name for name in ("policy.yaml", "more.yaml", "packets.yaml")]
REDIRECTED, UNAUTHENTICATED = "the request itself is a proxy's", "no mutual authentication"


def play(*arguments: str, before: Sequence[str] = (), **more: Any) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-m", "ext_authz.cli", "test", "--via", "bpf", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300, **more)


def test_the_kernel_answers_as_the_tables(tmp_path: Path) -> None:
    done = play(*map(str, CASES), "--json", "--keep", str(tmp_path))
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    *lines, last = map(json.loads, done.stdout.splitlines())
    probes = {(case.id, n): probe for file in CASES for case in read(file).cases for n, probe in enumerate(case.probes)}
    assert len(lines) == len(probes)
    assert last["failed"] == 0
    for line in lines:
        probe = probes[line["case"], line["probe"]]
        redirected = any(name in probe for name in REQUESTS) and probe.get("at") == "proxy"
        if probe.get("auth"):
            assert UNAUTHENTICATED in line["skipped"], line
        elif redirected:
            assert REDIRECTED in line["skipped"], line
        else:
            assert line["ok"], line
    # One event a probe, and each tells the case's own revision or none at all.
    events = [json.loads(text) for text in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert len(events) == len(probes)
    assert {event["event"]["protocol"] for event in events} == {1, 6, 17, 58, 132}
    assert json.loads((tmp_path / "counters.json").read_text())["reason 133 direction 0"] > 50


def test_entries_are_those_that_the_engine_names() -> None:
    """By file and line, from the number in the kernel's event."""
    of_kernel = {(line["case"], line["probe"]): line for line in _lines("bpf")}
    for line in _lines("engine"):
        played = of_kernel[line["case"], line["probe"]]
        if not played["skipped"] and "http" not in json.dumps(line["expect"]):
            assert played["entry"] == line["entry"], (played, line)


def _lines(via: str) -> list[dict[str, Any]]:
    done = play(str(CASES[2]), "--json", "--via", via)
    return [json.loads(text) for text in done.stdout.splitlines()[:-1]]


def test_a_wrong_table_is_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    text = (
        CASES[2].read_text().replace("port: 80, protocol: TCP, expect: allow", "port: 80, protocol: TCP, expect: deny")
    )
    wrong.write_text(text)
    done = play(str(wrong), "--only", "PKT-001", "--json")
    assert done.returncode == 1
    *lines, last = map(json.loads, done.stdout.splitlines())
    assert [line["probe"] for line in lines if line["ok"] is False] == [0]
    assert last == {"passed": 20, "failed": 1, "skipped": 0}


@pytest.mark.parametrize("wrap", [["--user"], ["--user", "--map-root-user", "--mount"]], ids=["nobody", "mapped root"])
def test_without_privileges_it_says_so_and_ends_with_2(wrap: list[str]) -> None:
    """Nobody, and who is root only in a user namespace of his own."""
    unshare = ["unshare", *wrap, "--"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        missing("no user namespaces")
    done = play(str(CASES[2]), before=unshare)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("idmesh test: --via bpf: "), done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_loader_it_says_so_and_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ext_authz.datapath._datapath'] = None\n")
    done = play(str(CASES[2]), env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "loader of the BPF data path is not built" in done.stderr
