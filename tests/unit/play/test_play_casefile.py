# SPDX-License-Identifier: Apache-2.0
"""Case files: worlds and cases merge key by key, policies keep their lines, and what is no case file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ext_authz.casefile import CaseError, read, result_of
from ext_authz.model.load import load_text

HEAD = """\
format: 1
defaults: {ipv4: true, ipv6: false, allow_localhost: always}
worlds:
  base:
    namespaces: {default: {}}
    endpoints:
      client: {labels: {app: client}, ips: [10.0.0.1]}
      server: {labels: {app: server}, ips: [10.0.0.2]}
    services: [{namespace: default, name: a, labels: {}, selector: {app: server}}]
"""
CASE = """\
cases:
- id: ONE
  world: base
  endpoints: {server: {labels: {app: other}}, third: {labels: {}}}
  services: [{namespace: default, name: b, labels: {}, backends: [192.0.2.1]}]
  settings: {ipv6: true}
  policies:
  - apiVersion: cilium.io/v2
    kind: CiliumNetworkPolicy
    metadata: {name: p, namespace: default}
    spec:
      endpointSelector: {}
      ingress: [{fromEntities: [World]}]
  - {apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: q, namespace: default},
     spec: {endpointSelector: {}, ingress: [{fromEntities: [Nobody]}]}}
  probes:
  - {from: client, to: server, dir: ingress, port: 80, protocol: TCP, expect: deny, drop: 133}
  - {from: client, to: server, dir: ingress, port: 80, protocol: TCP}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cases.yaml"
    path.write_text(text)
    return path


def test_case_adds_to_its_world_and_wins(tmp_path: Path) -> None:
    (case,) = read(written(tmp_path, HEAD + CASE)).cases
    assert set(case.fixtures["endpoints"]) == {"client", "server", "third"}
    assert case.fixtures["endpoints"]["server"] == {"labels": {"app": "other"}}
    assert [service["name"] for service in case.fixtures["services"]] == ["a", "b"]
    assert case.settings == {"ipv4": True, "ipv6": True, "allow_localhost": "always"}


def test_policies_keep_the_lines_of_the_case_file(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD + CASE)
    (case,) = read(path).cases
    lines = path.read_text().splitlines()
    for document, word in zip(case.documents, ("World", "Nobody"), strict=True):
        (error,) = load_text(document.text, str(path)).errors
        assert word in lines[error.origin.line - 1]
        assert yaml.safe_load(document.text) == document.raw


def test_a_policy_with_an_alias_is_read_at_the_line_where_it_starts(tmp_path: Path) -> None:
    aliased = CASE.replace("endpointSelector: {}\n      ingress", "endpointSelector: *all\n      ingress")
    head = HEAD.replace("namespaces: {default: {}}", "namespaces: {default: &all {}}")
    path = written(tmp_path, head + aliased)
    document = read(path).cases[0].documents[0]
    assert yaml.safe_load(document.text) == document.raw
    (error,) = load_text(document.text, str(path)).errors
    assert path.read_text().splitlines()[error.origin.line - 1] == "  - apiVersion: cilium.io/v2"


def test_result_keys_are_what_a_probe_states(tmp_path: Path) -> None:
    (case,) = read(written(tmp_path, HEAD + CASE)).cases
    assert [result_of(probe) for probe in case.probes] == [{"expect": "deny", "drop": 133}, {}]


def test_subject_and_direction_of_a_refused_combination_are_no_settings(tmp_path: Path) -> None:
    text = "format: 1\ninvalid:\n- {id: X, layer: compute, settings: {subject: server, dir: egress}, policies: []}\n"
    (case,) = read(written(tmp_path, text)).invalid
    assert (case.subject, case.direction, case.settings) == ("server", "egress", {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("format: 2\ncases: []\n", "not a case file of format 1"),
        ("- 1\n", "not a case file"),
        ("format: 1\n", "not a case file"),
        ("a: [\n", "cases.yaml"),
        (HEAD + "cases:\n- {id: ONE, world: nowhere, probes: []}\n", "case ONE"),
        (HEAD + "cases:\n- [ONE]\n", "case ?"),
    ],
)
def test_what_is_no_case_file_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(CaseError, match=r"cases\.yaml") as error:
        read(written(tmp_path, text))
    assert told in str(error.value)
