# SPDX-License-Identifier: Apache-2.0
"""idmesh validate: lines, exit codes, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ext_authz.cli import main

BAD = """apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: a, namespace: shop}
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [World]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text(BAD)
    return path


def test_a_good_file_says_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(BAD.replace("World", "world"))
    assert main(["validate", str(file)]) == 0
    assert capsys.readouterr().out == ""


def test_a_bad_file_names_place_object_field_and_reason(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(file.parent)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"{file}:7:20: CiliumNetworkPolicy shop/a: spec.ingress[0].fromEntities[0]: ")
    assert out.count("\n") == 1


def test_control_bytes_never_reach_the_terminal(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(BAD.replace("shop", '"a\\eb"').replace("World", '"\\e[31m"') + '  "x\\ey": 1\n')
    assert main(["validate", str(file)]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert all(line.isprintable() for line in captured.out.splitlines())


def test_json_gives_one_object_a_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--json", str(file)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert list(found) == ["file", "line", "col", "kind", "namespace", "name", "field", "reason", "severity"]
    assert (found["line"], found["col"], found["severity"]) == (7, 20, "error")


def test_warnings_do_not_change_the_answer(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(BAD.replace("fromEntities: [World]", "fromGroups: [{}]"))
    assert main(["validate", str(file)]) == 0
    assert ": warning: " in capsys.readouterr().out


def test_strict_refuses_other_kinds(file: Path) -> None:
    file.write_text("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n")
    assert main(["validate", str(file)]) == 0
    assert main(["validate", "--strict", str(file)]) == 1


@pytest.mark.parametrize(
    "arguments", [["none.yaml"], ["--set", "colour=red", "FILE"], ["--settings", "none.yaml", "FILE"]]
)
def test_what_cannot_be_done_exits_2(file: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert main(["validate", *(str(file) if word == "FILE" else word for word in arguments)]) == 2


def test_an_empty_folder_cannot_be_validated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path)]) == 2
    assert "no .yaml" in capsys.readouterr().err


def test_a_pattern_that_costs_too_much_is_refused_where_it_stands(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dear = "/" + "".join(f".*{letter}.{{50,400}}" for letter in "abcdefgh")
    ports = (
        f"toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{{path: /a}}, {{path: '{dear}'}}]}}}}]"
    )
    file.write_text(BAD.replace("fromEntities: [World]", ports))
    assert main(["validate", str(file)]) == 1
    assert "spec.ingress[0].toPorts[0].rules.http[1].path: " in capsys.readouterr().out


def test_conflicts_between_good_objects_are_errors(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = "spec: {endpointSelector: {}, ingress: [{fromEndpoints: [{}], authentication: {mode: %s}}]}\n"
    head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: %s}\n"
    file.write_text(f"{head % 'a'}{rule % 'required'}---\n{head % 'b'}{rule % 'test-always-fail'}")
    assert main(["validate", str(file)]) == 1
    assert "authentication" in capsys.readouterr().out


def test_a_document_that_names_nobody_is_told_by_its_place(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("a: [\n")
    assert main(["validate", str(file)]) == 1
    assert capsys.readouterr().out.startswith(f"{file}:2:1: is not YAML: ")
