# SPDX-License-Identifier: Apache-2.0
"""Laws of explaining: it says what the engine decides, names who wrote it, and what a denied flow missed."""

import json

import pytest

from ext_authz import cli
from ext_authz.commands.explain import read_http, read_port
from ext_authz.compiler.compile import compile_world
from ext_authz.engine.engine import Engine
from ext_authz.engine.types import Direction, Flow, Http
from ext_authz.explain import UnknownEnd, View, explain, find_end, nearest_miss
from ext_authz.explain.sides import result_text, side_record, side_text
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import load_text

EMPIRE = """
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Pod
metadata: {name: deathstar, namespace: default, labels: {org: empire, class: deathstar}}
spec: {containers: [{name: c, ports: [{name: web, containerPort: 8080, protocol: TCP}]}]}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: tie, namespace: default, labels: {org: empire}}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: xwing, namespace: default, labels: {org: alliance}}
status: {podIPs: [{ip: 10.0.0.3}]}
---
apiVersion: v1
kind: Secret
metadata: {name: key, namespace: default}
stringData: {token: dGhlLXNlY3JldA}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: landing, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress:
  - fromEndpoints: [{matchLabels: {org: empire}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules:
        http:
        - {method: POST, path: /v1/request-landing}
        - {method: GET, path: /v1/.*, host: "deathstar[.]local"}
        - path: /secret
          headerMatches: [{name: X-Key, secret: {name: key, namespace: default}}]
  - fromEndpoints: [{matchLabels: {org: empire}}]
    toPorts: [{ports: [{port: web, protocol: TCP}]}]
  ingressDeny:
  - fromEndpoints: [{matchLabels: {org: empire}}]
    toPorts: [{ports: [{port: "22", protocol: TCP}]}]
"""


@pytest.fixture(scope="module")
def view():
    loaded = load_text(EMPIRE, "empire.yaml")
    assert loaded.errors == []
    compiled = compile_world(loaded.world, MemoryAllocator(5))
    assert compiled.errors == ()
    return View(Engine.open(compiled.snapshot))


def sides_of(view, source="default/tie", destination="default/deathstar", port=80, protocol=6, **facts):
    flow = Flow(direction=Direction.INGRESS, peer=0, protocol=protocol, port=port, raw_path=True, **facts)
    return explain(view, find_end(view, source), find_end(view, destination), flow)


def miss_of(view, *args, **facts):
    return sides_of(view, *args, **facts)[1].miss


def test_what_passes_names_the_rule_and_line_that_allowed_it(view):
    egress, ingress = sides_of(view, http=Http("POST", "/v1/request-landing"))
    assert result_text([egress, ingress]) == "allowed"
    assert ingress.entry.rule.text.startswith("CiliumNetworkPolicy default/landing empire.yaml:")
    line = EMPIRE.splitlines()[ingress.http_rule.line - 1]
    assert "request-landing" in line
    assert ingress.miss is None
    assert egress.note


def test_a_wrong_peer_is_a_miss_of_its_labels(view):
    miss = miss_of(view, "default/xwing")
    assert (miss.field, miss.wanted, miss.seen) == ("peer", "any:org=empire", "k8s:org=alliance")
    assert miss.rule.name == "landing"


def test_a_wrong_port_is_a_miss_of_the_port(view):
    miss = miss_of(view, port=81)
    assert (miss.field, miss.wanted, miss.seen) == ("port", "80", "81")


def test_a_named_port_is_no_miss_where_its_number_fits(view):
    assert sides_of(view, port=8080)[1].passes
    assert {item.name for item in miss_of(view, "default/xwing", port=8080).others} == set()
    assert miss_of(view, "default/xwing", port=8080).field == "peer"


def test_a_wrong_protocol_is_a_miss_of_the_protocol(view):
    miss = miss_of(view, protocol=17)
    assert (miss.field, miss.wanted, miss.seen) == ("protocol", "TCP", "UDP")


@pytest.mark.parametrize(
    ("request_facts", "field", "wanted", "seen"),
    [
        (Http("PUT", "/v1/request-landing"), "method", "POST", "PUT"),
        (Http("POST", "/v1/request-landin"), "path", "/v1/request-landing", "/v1/request-landin"),
        (Http("GET", "/v1/", "elsewhere"), "host", "deathstar[.]local", "elsewhere"),
        (Http("GET", "/v2/../v3", "deathstar.local"), "path", "/v1/.*", "/v3"),
        (Http("GET", "/v1/../x", "deathstar.local"), "path", "/v1/.*", "/x"),
        (Http("GET", "/secret"), "header x-key", "[redacted]", "absent"),
        (Http("GET", "/secret", "", (("x-key", "guess"),)), "header x-key", "[redacted]", "[redacted]"),
    ],
)
def test_a_wrong_request_is_a_miss_of_its_field(view, request_facts, field, wanted, seen):
    side = sides_of(view, http=request_facts)[1]
    assert not side.passes
    assert (side.miss.field, side.miss.wanted, side.miss.seen) == (field, wanted, seen)
    assert side.miss.rule.line > 0


def test_every_wrong_field_of_the_nearest_rule_is_named(view):
    miss = miss_of(view, http=Http("PUT", "/v1/request-land"))
    assert [miss.field, *(item.name for item in miss.others)] == ["method", "path"]


def test_an_explicit_deny_decided_and_nothing_was_missed(view):
    side = sides_of(view, port=22)[1]
    assert side.verdict.drop_reason == 181
    assert side.entry.verdict == "deny"
    assert side.miss is None


def test_everything_considered_is_an_entry_of_the_side(view):
    side = sides_of(view)[1]
    assert {entry.verdict for entry, _ in side.considered} == {"redirect", "allow", "deny"}
    assert len({entry.number for entry, _ in side.considered}) == len(side.considered) == 3


def test_secrets_stay_out_of_texts_and_records(view):
    sides = sides_of(view, http=Http("GET", "/secret", "", (("x-key", "wrong"),)))
    shown = json.dumps([side_record(side) for side in sides]) + "\n".join(line for s in sides for line in side_text(s))
    assert "dGhlLXNlY3JldA" not in shown


def test_no_control_byte_reaches_the_terminal(view):
    sides = sides_of(view, http=Http("GET\x1b[31m", "/v1/x"))
    assert all(line.isprintable() for side in sides for line in side_text(side))


def test_ends_are_names_addresses_numbers_and_reserved_names(view):
    star = find_end(view, "default/deathstar")
    assert find_end(view, "10.0.0.1").endpoint == star.endpoint
    assert find_end(view, str(star.identity)).identity == star.identity
    assert find_end(view, "world").identity == find_end(view, "192.0.2.1").identity == 2
    for text in ("default/nobody", "nobody", "99999"):
        with pytest.raises(UnknownEnd):
            find_end(view, text)


def test_an_end_that_is_no_subject_is_not_judged(view):
    egress, _ = sides_of(view, "192.0.2.1")
    assert not egress.judged
    assert egress.passes


def test_the_nearest_miss_is_found_without_an_explanation_too(view):
    star = view.engine.endpoints["default/deathstar"]
    xwing = find_end(view, "default/xwing").identity
    flow = Flow(direction=Direction.INGRESS, peer=xwing, protocol=6, port=80, subject=star)
    assert nearest_miss(view, flow, view.engine.decide(flow)).field == "peer"


def test_a_flow_that_itself_lacks_something_says_so(view):
    flow = Flow(direction=Direction.INGRESS, peer=77777, protocol=6, port=80, subject="default/deathstar")
    assert nearest_miss(view, flow, view.engine.decide(flow)).field == "peer"
    flow = Flow(direction=Direction.INGRESS, peer=2, protocol=6, port=80, subject="default/nobody")
    assert nearest_miss(view, flow, view.engine.decide(flow)).field == "subject"


# ---- the command ----


@pytest.fixture
def empire(tmp_path):
    path = tmp_path / "empire.yaml"
    path.write_text(EMPIRE)
    return str(path)


def run(*words):
    return cli.main([str(word) for word in words])


ASK = ("--from", "default/tie", "--to", "default/deathstar", "--port")


def test_exit_codes_are_allowed_denied_and_cannot_tell(empire, capsys):
    assert run("explain", empire, *ASK, "80", "--http", "POST star/v1/request-landing") == 0
    assert run("explain", empire, *ASK, "22") == 1
    assert run("explain", empire, "--from", "nobody", "--to", "default/deathstar", "--port", "80") == 2
    assert run("explain", empire, *ASK, "http") == 2
    assert "denied" in capsys.readouterr().out


def test_of_two_ends_that_nobody_judges_nothing_is_told(empire, capsys):
    """A door denies whom it does not know, so that "allowed" would be wrong; the files may say too little."""
    ask = ("explain", empire, "--from", "192.0.2.1", "--to", "192.0.2.2", "--port", "80")
    assert run(*ask) == 2
    assert capsys.readouterr().out.splitlines()[-1].startswith("cannot be told: ")
    assert run(*ask, "--json") == 2
    assert json.loads(capsys.readouterr().out)["result"] == "unknown"


def test_json_holds_both_sides(empire, capsys):
    run("explain", empire, *ASK, "81", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [side["direction"] for side in found["sides"]] == ["egress", "ingress"]
    assert found["sides"][1]["miss"]["field"] == "port"
    assert found["result"] == "denied"


def test_files_with_errors_explain_nothing(tmp_path, empire, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: x}\nspec: {}\n")
    assert run("explain", empire, bad, *ASK, "80") == 2
    assert "bad.yaml" in capsys.readouterr().err


def test_ports_and_requests_read_as_written():
    assert read_port("53/udp") == (53, 17)
    assert read_port("8/ICMP") == (8, 1)
    request = read_http("GET host:8080/a?b=c", ["X-A: b: c"])
    assert (request.method, request.host, request.path) == ("GET", "host:8080", "/a?b=c")
    assert request.headers == (("X-A", "b: c"),)
    assert read_http("GET /a", []).host == ""
    request = read_http("GET https://host/a?to=http://b", [])
    assert (request.host, request.path) == ("host", "/a?to=http://b")


@pytest.mark.parametrize("text", ["", "65536", "-1", "80/FOO", "²"])
def test_ports_that_are_none_are_refused(text):
    with pytest.raises(cli.Failure):
        read_port(text)
