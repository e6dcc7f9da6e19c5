# SPDX-License-Identifier: Apache-2.0
"""Every mistake that is planted into a generated example is named where it stands; what is generated has none."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mistakes_doors import DOORS
from mistakes_peers import PEERS
from mistakes_requests import REQUESTS
from planted import Mistake, Tree, chain, door, example, generate, listener, manager, per_route, put

from ext_authz.doctor.config.finding import Finding, Severity
from ext_authz.doctor.config.judge import judge

E = Severity.ERROR
MODULE, AUTHZ = "module-http", "ext-authz-http"
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
MISTAKES: dict[str, Mistake] = {**REQUESTS, **PEERS, **DOORS}


def found(tree: Tree) -> list[Finding]:
    return judge(json.dumps(tree, indent=1).encode())


@pytest.mark.parametrize("name", sorted(generate.examples()))
def test_a_generated_example_has_no_mistake(name: str) -> None:
    checks = [finding.check for finding in found(example(name))]
    assert checks == (["ext-proc-observes"] if name == "ext-proc-http-observe" else [])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_named_where_it_stands(mistake: str) -> None:
    name, plant, severity, check, where = MISTAKES[mistake]
    tree = example(name)
    plant(tree)
    named = [(item.severity, item.check) for item in found(tree) if where in item.path]
    assert (severity, check) in named, found(tree)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_finding_says_why_and_what_to_do_on_a_line_of_the_file(mistake: str) -> None:
    name, plant, *_ = MISTAKES[mistake]
    tree = example(name)
    plant(tree)
    lines = len(json.dumps(tree, indent=1).splitlines())
    for item in found(tree):
        assert item.check != "doctor", item
        assert "" not in (item.what, item.why, item.remedy)
        assert 0 < item.line <= lines


@pytest.mark.parametrize("mistake", MISTAKES)
def test_yaml_is_judged_as_json_is(mistake: str) -> None:
    name, plant, *_ = MISTAKES[mistake]
    tree = example(name)
    plant(tree)
    said = [(item.check, item.path) for item in found(tree)]
    # Both orders are the file's; only the keys of a map need the same one.
    other = judge(yaml.dump(tree, Dumper=_DUMPER, sort_keys=False).encode())
    assert sorted((item.check, item.path) for item in other) == sorted(said)


def test_both_spellings_of_a_field_are_read() -> None:
    for name in ("failure_mode_allow", "failureModeAllow"):
        tree = example(AUTHZ)
        door(tree).pop("failureModeAllow", None)
        door(tree)[name] = True
        assert found(tree)[0].check == "failure-mode-allow"


def test_the_line_is_the_fields_own() -> None:
    tree = example(AUTHZ)
    door(tree)["failureModeAllow"] = True
    text = json.dumps(tree, indent=1)
    line = next(number for number, said in enumerate(text.splitlines(), 1) if '"failureModeAllow": true' in said)
    assert judge(text.encode())[0].line == line
    assert judge(text.replace("\n", "\n\t").encode())[0].line == line


def test_snippets_of_discovery_services_are_judged() -> None:
    tree = example(AUTHZ)
    door(tree)["failureModeAllow"] = True
    assert "failure-mode-allow" in {item.check for item in found({"resources": [listener(tree)]})}
    assert "failure-mode-allow" in {item.check for item in found(listener(tree))}
    assert found({"resources": [listener(example(MODULE))]}) == []


@pytest.mark.parametrize("name", ["module-http", "ext-authz-http", "ext-proc-http"])
def test_routes_alone_are_judged(name: str) -> None:
    """What RDS serves: no filter is in the file, only their names are."""
    tree = example(name)
    usual = {"module-http": "idmesh"}.get(name, f"envoy.filters.http.{name[:-5].replace('-', '_')}")
    per_route(usual, "type.googleapis.com/envoy.config.route.v3.FilterConfig", disabled=True)(tree)
    routes = manager(tree)["routeConfig"]
    routes["virtualHosts"][0]["routes"][0]["route"]["prefixRewrite"] = "/x"
    for snippet in (routes, {"resources": [routes]}):
        assert {item.check for item in found(snippet)} == {"route-disabled", "route-rewrite"}


def test_envoys_own_dump_is_judged() -> None:
    """/config_dump of the admin interface: what is in force, from wherever it came."""
    tree = example(AUTHZ)
    door(tree)["failureModeAllow"] = True
    tree["admin"]["address"]["socketAddress"]["address"] = "0.0.0.0"
    dynamic = {"activeState": {"listener": listener(tree)}}
    dump = {"configs": [{"bootstrap": {"admin": tree["admin"]}}, {"dynamicListeners": [dynamic]}]}
    assert {item.check for item in found(dump)} == {"failure-mode-allow", "admin"}


def test_every_manager_and_chain_is_judged() -> None:
    tree = example(AUTHZ)
    listener(tree)["filterChains"].append(copy.deepcopy(chain(tree)))
    tree["staticResources"]["listeners"].append(copy.deepcopy(listener(tree)))
    for item in tree["staticResources"]["listeners"]:
        for each in item["filterChains"]:
            each["filters"][0]["typedConfig"]["mergeSlashes"] = False
    assert len([item for item in found(tree) if item.check == "path-normalization"]) == 4


def test_a_filter_that_does_not_say_whom_it_asks_is_ours_if_no_other_is() -> None:
    tree = example(AUTHZ)
    door(tree)["grpcService"] = {"envoyGrpc": {"clusterName": "upstream"}, "timeout": "2s"}
    put(door, statPrefix=None, metadataContextNamespaces=None, failureModeAllow=True)(tree)
    assert "failure-mode-allow" in {item.check for item in found(tree)}


BROKEN = {
    "nothing": b"",
    "a list": b"[]",
    "a word": b"envoy",
    "half a file": b'{"static_resources": {"listeners": [',
    "bytes": b"\xff\xfe\x00",
    "twice": b'{"admin": {}, "admin": {}}',
    "a key that is a list": b"? [a]\n: b\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "deep": b"[" * 5000,
    "deep maps": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "a cycle": b"a: &a\n  b: *a\n",
    "a bomb": b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 10)) for c in range(98, 106)),
    "something else": b'{"apiVersion": "v1", "kind": "Pod"}',
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_configuration_is_said_to_be_none(what: str) -> None:
    (only,) = judge(BROKEN[what])
    assert (only.severity, only.check) == (E, "unreadable")


def run(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ext_authz.cli", "doctor", *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def test_the_command_exits_with_1_on_errors_only(tmp_path: Path) -> None:
    file = tmp_path / "envoy.json"
    tree = example(AUTHZ)
    file.write_text(json.dumps(tree))
    assert (run("--envoy-config", str(file)).returncode) == 0
    put(door, statusOnError=None)(tree)
    warned = run("--envoy-config", "-", text=json.dumps(tree))
    assert (warned.returncode, "status-on-error" in warned.stdout) == (0, True)
    put(door, failureModeAllow=True)(tree)
    failed = run("--envoy-config", "-", "--json", text=json.dumps(tree))
    assert failed.returncode == 1
    first = json.loads(failed.stdout.splitlines()[0])
    assert first["path"].endswith("failureModeAllow")
    assert set(first) == {"file", "severity", "check", "path", "line", "what", "why", "remedy"}


def test_a_file_that_is_not_there_could_not_be_judged(tmp_path: Path) -> None:
    done = run("--envoy-config", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (2, "")
