# SPDX-License-Identifier: Apache-2.0
"""Laws of `idmesh flows` and `idmesh explain --decision` on files, and of the line for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "flow"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "service"))

from checks import POLICY, WORLD, snapshot
from flow_rings import AUDIT, CONNECTION, DROPPED, END, NONE, RESPONSE, make_record, write

from ext_authz.cli import main
from ext_authz.flow.compact import compact
from ext_authz.flow.hubble import Formatter
from ext_authz.flow.names import Names

GET = {"method": b"GET", "host": b"server", "path": b"/public/x", "protocol": b"HTTP/1.1", "ingress_entry": 0}
IDS = {name: bytes([number]) * 16 for number, name in enumerate(("good", "bad", "tcp", "cut", "end"), 1)}


@pytest.fixture
def formatter(tmp_path: Path) -> Formatter:
    write(tmp_path / "snapshot", snapshot())
    names = Names(tmp_path / "snapshot")
    names.load()
    return Formatter(names, "node")


@pytest.fixture
def file(tmp_path: Path, formatter: Formatter) -> Path:
    """A rotated set: an older file, a line that is none, and the newest flows."""
    records: list[dict[str, Any]] = [
        {**GET, "decision": IDS["good"], "ingress_rule": 1},
        {"type": RESPONSE, "code": 200, "latency_ns": 3_000_000, "decision": IDS["good"]},
        {**GET, "path": b"/private?x", "verdict": DROPPED, "code": 403, "decision": IDS["bad"]},
        {"type": CONNECTION, "verdict": DROPPED, "drop_reason": 133, "source_identity": 257, "source_endpoint": 1,
         "source": "10.0.0.12", "destination_port": 5432, "decision": IDS["tcp"], "door": 2},
        {**GET, "decision": IDS["cut"], "flags": 1, "headers": [(b"cookie", b"x")]},
        {"type": END, "decision": IDS["end"], "latency_ns": 1},
    ]  # fmt: skip
    made = []
    for fields in records:
        record = make_record(**fields)
        made.append(formatter.format(record, formatter.opened(record)).line + "\n")
    (tmp_path / "flows.json.1").write_text("".join(made[:2]))
    (tmp_path / "flows.json").write_text("no flow\n" + "".join(made[2:]))
    return tmp_path / "flows.json"


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/all.yaml").write_text(WORLD + POLICY)
    return tmp_path / "policies"


def ids(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["flows", "--json", *words]) == 0
    found = [json.loads(line)["flow"]["uuid"] for line in capsys.readouterr().out.splitlines()]
    names = {value.hex(): name for name, value in IDS.items()}
    return [names[uuid] for uuid in found]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["good", "good", "bad", "tcp", "cut", "end"]),
        (["--last", "2"], ["cut", "end"]),
        (["--last", "0"], []),
        (["--verdict", "DROPPED"], ["bad", "tcp"]),
        (["--verdict", "DROPPED", "--door", "module"], ["bad"]),
        (["--not", "--verdict", "DROPPED", "--last", "1"], ["end"]),
        (["--not", "--verdict", "DROPPED", "--http-status", "200"], ["good"]),
        (["--not", "--path", "^/public", "--not", "--door", "ext-authz"], ["bad", "end"]),
        (["--path", "^/private", "--path", "^/public", "--http-status", "4+"], ["bad"]),
        (["--http-status", "200"], ["good"]),
        (["--pod", "default/other"], ["tcp"]),
        (["-l", "app=other", "-n", "default"], ["tcp"]),
        (["--port", "5432", "--identity", "257"], ["tcp"]),
        (["--uuid", IDS["cut"].hex()], ["cut"]),
        (["--from-pod", "default/server"], ["good"]),
        (["--drop-reason", "133", "--method", "get"], []),
    ],
    ids=str,
)
def test_filters_on_a_file(
    capsys: pytest.CaptureFixture[str], file: Path, words: list[str], expected: list[str]
) -> None:
    assert ids(capsys, "--file", str(file), *words) == expected


def test_lines_that_are_none_are_counted(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert main(["flows", "--file", str(file)]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 6
    assert "1 lines are no flows" in told.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--state", "missing"], "does a node run"),
        (["--file", "missing"], "missing"),
        (["--verdict", "NO"], "verdict NO"),
        (["--path", "("], "path"),
        (["--port", "-1"], "out of range"),
        (["--identity", str(1 << 40)], "out of range"),
        (["--file", "x", "--follow"], "one of them"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_and_ends_with_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["flows", *words]) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert len(told.splitlines()) == 1


def test_a_recorded_denial_is_explained(capsys: pytest.CaptureFixture[str], file: Path, policies: Path) -> None:
    assert main(["explain", str(policies), "--decision", IDS["tcp"].hex(), "--file", str(file)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("recorded: DROPPED (POLICY_DENIED), revision 1, ext-authz")
    assert any("missed  peer" in line for line in told)
    assert told[-1] == "denied, as recorded"


def test_a_recorded_request_is_asked_as_it_was(capsys: pytest.CaptureFixture[str], file: Path, policies: Path) -> None:
    for name, code, result in (("good", 0, "allowed"), ("bad", 1, "denied"), ("cut", 0, "allowed")):
        words = ["explain", str(policies), "--decision", IDS[name].hex(), "--file", str(file), "--json"]
        assert main(words) == code
        told = json.loads(capsys.readouterr().out)
        assert (told["result"], told["as_recorded"]) == (result, True)
        notes = " ".join(told["notes"])
        assert ("query" in notes, "cut" in notes) == (name == "bad", name == "cut")


def test_other_policies_answer_otherwise_and_say_so(
    capsys: pytest.CaptureFixture[str], file: Path, policies: Path
) -> None:
    (policies / "all.yaml").write_text(WORLD + POLICY.replace("public", "elsewhere"))
    assert main(["explain", str(policies), "--decision", IDS["good"].hex(), "--file", str(file)]) == 1
    assert capsys.readouterr().out.endswith("denied, unlike recorded\n")


def test_ends_are_found_by_labels_or_address_if_not_by_name(
    capsys: pytest.CaptureFixture[str], file: Path, policies: Path
) -> None:
    renamed = (WORLD + POLICY).replace("name: client", "name: client-2")
    (policies / "all.yaml").write_text(renamed)
    assert main(["explain", str(policies), "--decision", IDS["good"].hex(), "--file", str(file)]) == 0
    assert "default/client-2" in capsys.readouterr().out
    relabelled = (
        (WORLD + POLICY).replace("labels: {app: other}", "labels: {app: new}").replace("name: other", "name: n")
    )
    (policies / "all.yaml").write_text(relabelled)
    assert main(["explain", str(policies), "--decision", IDS["tcp"].hex(), "--file", str(file)]) == 1
    assert "asked about its address" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--decision", "00"], "no such flow"),
        (["--decision", IDS["end"].hex()], "only its end"),
        (["--decision", IDS["good"].hex(), "--from", "x"], "--from"),
        (["--decision", IDS["good"].hex(), "--state", "x"], "one of them"),
        ([], "--from, --to, --port"),
    ],
    ids=str,
)
def test_what_cannot_be_explained_is_said(
    capsys: pytest.CaptureFixture[str], file: Path, policies: Path, words: list[str], reason: str
) -> None:
    assert main(["explain", str(policies), "--file", str(file), *words]) == 2
    assert reason in capsys.readouterr().err


def line(formatter: Formatter, **fields: Any) -> str:
    record = make_record(**fields)
    seen = formatter.format(record, formatter.opened(record))
    return compact(json.loads(seen.line)["flow"])


def test_the_line_for_people_is_hubbles(formatter: Formatter) -> None:
    request = line(formatter, **GET)
    assert request.endswith(
        "default/client:40000 (ID:256) -> default/server:80 (ID:258) http-request FORWARDED "
        "(HTTP/1.1 GET http://server/public/x)"
    )
    reply = line(formatter, type=RESPONSE, code=200, latency_ns=2_000_000)
    assert "default/client:40000 (ID:256) <- default/server:80 (ID:258) http-response FORWARDED" in reply
    denied = line(formatter, type=CONNECTION, verdict=DROPPED, drop_reason=133, match_type=2, source_endpoint=NONE,
                  source_identity=2, source="203.0.113.9")  # fmt: skip
    assert "203.0.113.9:40000 (world) -> " in denied
    assert f"policy-verdict:L3-L4 INGRESS DENIED (TCP; POLICY_DENIED; decision {'01' * 16})" in denied
    assert "AUDITED" in line(formatter, type=CONNECTION, verdict=AUDIT, drop_reason=181)
    assert "[fd00::11]:40000" in line(
        formatter, revision=9, source="fd00::11", destination="fd00::21", source_endpoint=NONE
    )


def test_the_line_for_people_cannot_be_coloured_by_clients(formatter: Formatter) -> None:
    told = line(formatter, method=b"G\x1b[31m\n", host=b"\xe2\x80\xae", path=b"/\x07", verdict=DROPPED)
    assert told.isprintable()
    coloured = compact({"verdict": "DROPPED\x1b[0m", "Summary": "\x1b"}, colour=True)
    assert coloured.count("\x1b") == 2
    assert compact({"source": {"pod_name": "a\x1b]0;"}, "IP": {"destination": "\r"}}).isprintable()


@pytest.mark.parametrize("flow", [{}, {"time": 1, "l4": [], "source": "x", "l7": {"type": 3}}, {"IP": None}])
def test_odd_lines_are_shown_somehow(flow: dict[str, Any]) -> None:
    assert compact(flow)
