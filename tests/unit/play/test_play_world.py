# SPDX-License-Identifier: Apache-2.0
"""Fixtures as the product reads them, and the command's exit codes."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from ext_authz.casefile import Case, read
from ext_authz.cli import main
from ext_authz.play.world import SPARE, build

CASES = Path(__file__).resolve().parents[2] / "cases"
POLICY = {case.id: case for case in read(CASES / "policy.yaml").cases}


def test_every_end_of_a_probe_has_an_address_that_no_rule_speaks_of() -> None:
    case: Case = POLICY["HOST-013"]
    addresses = build(case).addresses
    assert addresses["ingress"][0] == str(ip_address(addresses["ingress"][0]))
    assert ip_address(addresses["ingress"][0]) in SPARE
    assert addresses["ip:203.0.113.9"] == ("203.0.113.9",)
    assert len({address for some in addresses.values() for address in some}) == sum(map(len, addresses.values()))


def test_spare_addresses_stay_outside_the_prefixes_of_the_case() -> None:
    case = POLICY["HOST-013"]
    groups = {"all": {"labels": {}, "cidrs": ["198.18.0.0/16"]}}
    crowded = Case(
        case.id, case.file, {**case.fixtures, "cidr_groups": groups}, case.settings, case.documents, case.probes
    )
    assert ip_address(build(crowded).addresses["ingress"][0]) not in ip_network("198.18.0.0/16")


def test_pods_carry_namespace_cluster_and_account() -> None:
    endpoints = {endpoint.name: endpoint for endpoint in build(POLICY["SEL-016"]).world.endpoints}
    assert {
        "k8s:app=client",
        "k8s:io.kubernetes.pod.namespace=other",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=other",
        "k8s:io.cilium.k8s.namespace.labels.env=staging",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=robot",
    } <= set(endpoints["oclient"].labels)
    assert not endpoints["rclient"].local
    assert endpoints["cp-node"].kube_apiserver


def test_exit_codes_follow_the_interface(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = str(CASES / "policy.yaml")
    assert main(["test", policy, "--only", "DD-001"]) == 0
    assert main(["test", policy, "--only", "DD-999"]) == 2
    assert "DD-999" in capsys.readouterr().err
    assert main(["test", policy, "--via", "host"]) == 2
    assert "not part of this version" in capsys.readouterr().err
    assert main(["test", str(tmp_path / "none.yaml")]) == 2
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((CASES / "policy.yaml").read_text().replace("expect: allow", "expect: deny, drop: 133", 1))
    capsys.readouterr()
    assert main(["test", str(wrong), "--only", "DD-001", "--json"]) == 1
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [line["ok"] for line in lines] == [False, True, True, True]
    assert last == {"passed": 3, "failed": 1, "skipped": 0}


def test_invalid_cases_are_printed_as_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", str(CASES / "invalid.yaml"), "--only", "INV-010,CNF-002", "--json"]) == 0
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert last == {"passed": 2, "failed": 0, "skipped": 0}
    for line in lines:
        assert (line["probe"], line["expect"]) == (0, {"expect": "refuse"})
        assert set(line["got"]) == {"expect", "field", "line", "reason"}
        assert line["got"]["line"] > 1


def test_a_case_that_is_refused_fails_at_each_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (CASES / "policy.yaml").read_text()
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace("ingress: [{fromEntities: [remote-node]}]", "ingress: [{fromEntities: [Node]}]", 1))
    assert main(["test", str(broken), "--only", "ENT-005", "--json"]) == 1
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert last == {"passed": 0, "failed": 5, "skipped": 0}
    assert all(line["got"]["field"] == "spec.ingress[0].fromEntities[0]" for line in lines)


def test_a_probe_from_nowhere_is_told_with_its_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        (CASES / "policy.yaml").read_text().replace("{from: bare, to: server", "{from: nobody, to: server")
    )
    assert main(["test", str(broken)]) == 2
    assert "nobody" in capsys.readouterr().err
