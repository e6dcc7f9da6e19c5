# SPDX-License-Identifier: Apache-2.0
"""Laws of flow lines: Hubble's names and forms, valid JSON whatever a client sent, nothing shown that is secret."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from checks import POLICY, WORLD, snapshot
from flow_rings import AUDIT, CONNECTION, DROPPED, END, RESPONSE, make_record, write
from hypothesis import given, settings
from hypothesis import strategies as st

from ext_authz.flow.facts import read_line
from ext_authz.flow.hubble import OPEN_MAX, Formatter
from ext_authz.flow.names import KEPT, Names
from ext_authz.flow.quiet import Quiet
from ext_authz.flow.record import RecordError

SECRET = b"s3cr3t"
# The fields of Hubble's messages that lines use, with what proto JSON makes of their types.
FLOW = {
    "time": str, "uuid": str, "verdict": str, "drop_reason": int, "auth_type": str, "IP": dict, "l4": dict,
    "source": dict, "destination": dict, "Type": str, "node_name": str, "l7": dict, "event_type": dict,
    "traffic_direction": str, "policy_match_type": int, "trace_observation_point": str, "drop_reason_desc": str,
    "is_reply": bool, "trace_context": dict, "Summary": str, "egress_allowed_by": list, "ingress_allowed_by": list,
    "egress_denied_by": list, "ingress_denied_by": list, "policy_log": list, "extensions": dict,
}  # fmt: skip
ENDPOINT = {"ID": int, "identity": int, "cluster_name": str, "namespace": str, "labels": list, "pod_name": str}
HTTP = {"code": int, "method": str, "url": str, "protocol": str, "headers": list}
POLICY_FIELDS = {"name": str, "namespace": str, "labels": list, "revision": str, "kind": str}


def line_of(formatter: Formatter, **fields: Any) -> dict[str, Any]:
    """The event of one record; every line must be as Hubble's messages are."""
    record = make_record(**fields)
    text = formatter.format(record, formatter.opened(record)).line
    assert text.isascii()
    assert text.isprintable()
    event: dict[str, Any] = json.loads(text)
    check_event(event)
    return event


def flow_of(formatter: Formatter, **fields: Any) -> dict[str, Any]:
    flow: dict[str, Any] = line_of(formatter, **fields)["flow"]
    return flow


def own(flow: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = flow["extensions"]["value"]
    return value


def check_event(event: dict[str, Any]) -> None:
    assert event.keys() == {"flow", "node_name", "time"}
    flow = event["flow"]
    assert_fields(flow, FLOW)
    for end in ("source", "destination"):
        assert_fields(flow[end], ENDPOINT)
    if "l7" in flow:
        assert_fields(flow["l7"], {"type": str, "latency_ns": str, "http": dict})
        assert_fields(flow["l7"]["http"], HTTP)
    for side in ("egress_allowed_by", "ingress_allowed_by", "egress_denied_by", "ingress_denied_by"):
        for policy in flow.get(side, ()):
            assert_fields(policy, POLICY_FIELDS)
    assert flow["extensions"]["@type"] == "type.googleapis.com/google.protobuf.Struct"


def assert_fields(found: dict[str, Any], known: dict[str, type]) -> None:
    for name, value in found.items():
        assert type(value) is known[name], (name, value)


def test_a_request_names_both_ends_the_policy_and_the_rule(formatter: Formatter) -> None:
    event = line_of(
        formatter, method=b"GET", host=b"server", path=b"/public/x", protocol=b"HTTP/1.1", decision_ns=700,
        ingress_entry=0, ingress_rule=1, evidence=1,
    )  # fmt: skip
    flow = event["flow"]
    assert event["node_name"] == flow["node_name"] == "node-1"
    assert event["time"] == flow["time"] == "2023-11-14T22:13:20.123456789Z"
    assert flow["uuid"] == "01" * 16
    assert (flow["verdict"], flow["Type"], flow["event_type"]) == ("FORWARDED", "L7", {"type": 129})
    assert flow["IP"] == {"source": "10.0.0.11", "destination": "10.0.0.21", "ipVersion": "IPv4"}
    assert flow["l4"] == {"TCP": {"source_port": 40000, "destination_port": 80}}
    source = flow["source"]
    assert (source["identity"], source["namespace"], source["pod_name"]) == (256, "default", "client")
    assert (source["cluster_name"], source["labels"][0]) == ("default", "k8s:app=client")
    assert flow["destination"]["pod_name"] == "server"
    assert (flow["is_reply"], flow["traffic_direction"]) == (False, "INGRESS")
    http = {"method": "GET", "url": "http://server/public/x", "protocol": "HTTP/1.1"}
    assert flow["l7"] == {"type": "REQUEST", "http": http}
    (policy,) = flow["ingress_allowed_by"]
    assert (policy["name"], policy["namespace"], policy["revision"]) == ("web", "default", "1")
    assert policy["kind"] == "CiliumNetworkPolicy"
    assert "k8s:io.cilium.k8s.policy.name=web" in policy["labels"]
    assert flow["Summary"] == "HTTP/1.1 GET http://server/public/x"
    expected = {"revision": 1, "entry": 0, "door": "module", "decision_ns": 700}
    assert {key: own(flow)[key] for key in expected} == expected
    assert own(flow)["rule"].startswith("policy.yaml:")
    assert (own(flow)["truncated"], own(flow)["audit"], own(flow)["shadow"]) == (False, False, False)
    assert own(flow)["evidence"] == ["address"]


def test_a_response_goes_the_other_way_with_the_requests_facts(formatter: Formatter) -> None:
    flow_of(formatter, method=b"GET", host=b"server", path=b"/public/x", protocol=b"HTTP/2", ingress_entry=0)
    flow = flow_of(formatter, type=RESPONSE, code=503, latency_ns=12_345_678, family=0, source_identity=0)
    assert flow["is_reply"] is True
    assert (flow["source"]["pod_name"], flow["destination"]["pod_name"]) == ("server", "client")
    assert flow["IP"] == {"source": "10.0.0.21", "destination": "10.0.0.11", "ipVersion": "IPv4"}
    assert flow["l4"] == {"TCP": {"source_port": 80, "destination_port": 40000}}
    assert (flow["l7"]["type"], flow["l7"]["latency_ns"], flow["l7"]["http"]["code"]) == ("RESPONSE", "12345678", 503)
    assert flow["l7"]["http"]["url"] == "http://server/public/x"
    assert flow["Summary"] == "HTTP/2 503 12ms (GET http://server/public/x)"
    assert flow["ingress_allowed_by"]


def test_a_response_without_its_request_says_what_it_knows(formatter: Formatter) -> None:
    flow = flow_of(formatter, type=RESPONSE, code=204, family=0, decision=b"\x07" * 16)
    assert (flow["uuid"], flow["l7"]["http"]) == ("07" * 16, {"code": 204})
    assert "IP" not in flow


def test_open_requests_are_bounded_and_denied_ones_wait_for_nothing(formatter: Formatter) -> None:
    record = make_record()
    for number in range(OPEN_MAX + 100):
        formatter.opened(record._replace(decision=number.to_bytes(16, "little")))
    formatter.opened(record._replace(decision=b"\xff" * 16, verdict=DROPPED))
    formatter.opened(record._replace(decision=bytes(16)))
    assert formatter.open_requests == OPEN_MAX


def test_connections_and_their_ends(formatter: Formatter) -> None:
    flow = flow_of(formatter, type=CONNECTION, match_type=2, verdict=DROPPED, drop_reason=133, sni=b"a.example")
    assert (flow["Type"], flow["event_type"], flow["policy_match_type"]) == ("L3_L4", {"type": 5}, 2)
    assert (flow["drop_reason"], flow["drop_reason_desc"]) == (133, "POLICY_DENIED")
    assert own(flow)["sni"] == "a.example"
    flow_of(formatter, type=CONNECTION)
    flow = flow_of(formatter, type=END, latency_ns=2_000_000_000, family=0)
    assert (flow["event_type"], flow["trace_observation_point"]) == ({"type": 4}, "TO_ENDPOINT")
    assert own(flow)["duration_ns"] == 2_000_000_000
    assert flow["IP"]["source"] == "10.0.0.11"


@pytest.mark.parametrize(
    ("number", "name"),
    [(133, "POLICY_DENIED"), (165, "NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION"),
     (171, "INVALID_IDENTITY"), (172, "UNKNOWN_SENDER"), (180, "PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL"),
     (181, "POLICY_DENY"), (189, "AUTH_REQUIRED"), (203, "DROP_EP_NOT_READY")],
)  # fmt: skip
def test_drop_reasons_have_hubbles_names(formatter: Formatter, number: int, name: str) -> None:
    flow = flow_of(formatter, verdict=DROPPED, drop_reason=number)
    assert (flow["drop_reason"], flow["drop_reason_desc"]) == (number, name)


def test_a_denial_blames_the_side_that_counts(formatter: Formatter) -> None:
    flow = flow_of(formatter, verdict=DROPPED, egress_entry=0, ingress_entry=0, direction=0)
    assert "ingress_denied_by" in flow
    assert "egress_allowed_by" in flow
    flow = flow_of(formatter, verdict=DROPPED, egress_entry=0, direction=1)
    assert flow["traffic_direction"] == "EGRESS"
    assert "egress_denied_by" in flow


@pytest.mark.parametrize(
    ("fields", "verdict", "marks"),
    [
        ({"verdict": AUDIT, "drop_reason": 181}, "AUDIT", {"audit": True, "audited": "POLICY_DENY"}),
        ({"verdict": DROPPED, "flags": 8}, "ERROR", {"error": True}),
        ({"verdict": DROPPED, "flags": 64}, "AUDIT", {"shadow": True}),
        ({"flags": 64}, "FORWARDED", {"shadow": True}),
        ({"flags": 1}, "FORWARDED", {"truncated": True}),
        ({"flags": 128}, "FORWARDED", {"truncated": True}),
        ({"flags": 2 | 4}, "FORWARDED", {"upstream": True, "again": True}),
        ({"verdict": 5, "type": CONNECTION}, "REDIRECTED", {}),
        ({"door": 3}, "FORWARDED", {"door": "ext-proc"}),
        ({"verdict": DROPPED, "dropped_by": 3}, "DROPPED", {"dropped_by": "http"}),
    ],
)
def test_flags_and_verdicts(formatter: Formatter, fields: dict[str, Any], verdict: str, marks: dict[str, Any]) -> None:
    flow = flow_of(formatter, **fields)
    assert flow["verdict"] == verdict
    assert {key: own(flow)[key] for key in marks} == marks


def test_grpc_status_is_no_http_status(formatter: Formatter) -> None:
    flow = flow_of(formatter, type=RESPONSE, code=7, flags=16 | 32)
    assert (own(flow)["grpc_status"], flow["l7"]["http"]["code"]) == (7, 200)


def test_authentication_is_told(formatter: Formatter) -> None:
    assert flow_of(formatter, auth=2)["auth_type"] == "SPIRE"
    assert "auth_type" not in flow_of(formatter, auth=1)


@pytest.mark.parametrize(
    ("text", "trace"),
    [(b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01", "ab" * 16), (b"00-" + b"AB" * 16 + b"-x-01", None),
     (b"00-" + b"00" * 16 + b"-" + b"cd" * 8 + b"-01", None), (b"nonsense", None), (b"\xff" * 55, None)],
)  # fmt: skip
def test_only_a_good_traceparent_becomes_a_trace_id(formatter: Formatter, text: bytes, trace: str | None) -> None:
    context = flow_of(formatter, traceparent=text).get("trace_context")
    assert context == ({"parent": {"trace_id": trace}} if trace else None)


SECRETS: list[dict[str, Any]] = [
    {"path": b"/a?token=" + SECRET},
    {"path": b"/a#" + SECRET},
    {"path": b"/a#x?" + SECRET},
    {"host": b"user:" + SECRET + b"@host"},
    {"path": b"http://user:" + SECRET + b"@host/x"},
    {"path": b"user:" + SECRET + b"@host:443"},
    {"path": b"http://a://" + SECRET + b"@b/"},
    {"headers": [(b"Authorization", b"Bearer " + SECRET)]},
    {"headers": [(b"proxy-AUTHORIZATION", SECRET)]},
    {"headers": [(b"Cookie", b"id=" + SECRET), (b"Set-Cookie", SECRET)]},
    {"headers": [(b"Referer", b"http://h/?" + SECRET)]},
]


@pytest.mark.parametrize("fields", SECRETS)
def test_secrets_are_redacted_by_default(formatter: Formatter, fields: dict[str, Any]) -> None:
    request = line_of(formatter, method=b"GET", **({"host": b"h", "path": b"/"} | fields))
    response = line_of(formatter, type=RESPONSE, code=200)
    for event in (request, response):
        assert SECRET.decode() not in json.dumps(event)
        assert "HUBBLE_REDACTED" in json.dumps(event)


@pytest.mark.parametrize("fields", SECRETS)
def test_redaction_can_be_turned_off(names: Names, fields: dict[str, Any]) -> None:
    event = line_of(Formatter(names, "n", redact=False), method=b"GET", **({"host": b"h", "path": b"/"} | fields))
    assert SECRET.decode() in json.dumps(event)


@pytest.mark.parametrize(("path", "url"), [(b"*", "*"), (b"", "http://h"), (b"http://o/x", "http://o/x")])
def test_targets_that_are_no_paths_stand_for_themselves(formatter: Formatter, path: bytes, url: str) -> None:
    assert flow_of(formatter, method=b"OPTIONS", host=b"h", path=path)["l7"]["http"]["url"] == url


def test_control_bytes_and_broken_utf8_are_escaped(formatter: Formatter) -> None:
    flow = flow_of(formatter, method=b'G"\n\x1b[31m', host=b"h\xff\x00", path=b"/\xc3\xa9\xed\xa0\x80\\", sni=b"\x7f\r")
    assert flow["l7"]["http"]["method"] == 'G"\n\x1b[31m'
    assert flow["l7"]["http"]["url"] == "https://h\\xff\x00/é\\xed\\xa0\\x80\\"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_a_producer_says_is_valid_json_or_refused(data: st.DataObject, session_names: Names) -> None:
    texts = {name: data.draw(st.binary(max_size=40)) for name in ("method", "host", "path", "protocol", "sni")}
    small = {name: data.draw(st.integers(0, 255)) for name in ("evidence", "at", "match_type", "l7", "auth")}
    wide = {
        name: data.draw(st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1)))
        for name in ("source_identity", "source_endpoint", "egress_entry", "ingress_entry", "ingress_rule", "flags",
                     "dropped_by", "destination_endpoint", "decision_ns")
    }  # fmt: skip
    few = {"type": data.draw(st.integers(1, 4)), "verdict": data.draw(st.sampled_from([1, 2, 4, 5]))}
    few |= {"direction": data.draw(st.integers(0, 1)), "family": data.draw(st.sampled_from([0, 4, 6]))}
    large = {name: data.draw(st.integers(0, 2**64 - 1)) for name in ("time_ns", "revision", "latency_ns")}
    codes = {name: data.draw(st.integers(0, 65535)) for name in ("code", "drop_reason")}
    formatter = Formatter(session_names, "node")
    record = make_record(**texts, **small, **wide, **few, **codes, **large)
    try:
        seen = formatter.format(record, formatter.opened(record))
    except (RecordError, ValueError):
        return
    check_event(json.loads(seen.line))


@pytest.fixture(scope="session")
def session_names(tmp_path_factory: pytest.TempPathFactory) -> Names:
    path = tmp_path_factory.mktemp("names") / "snapshot"
    write(path, snapshot())
    made = Names(path)
    made.load()
    return made


def test_facts_are_the_same_from_the_record_and_from_the_line(formatter: Formatter) -> None:
    cases: list[dict[str, Any]] = [
        {"method": b"GET", "host": b"h", "path": b"/a?b", "ingress_entry": 0, "code": 403, "verdict": DROPPED},
        {"method": b"PUT", "host": b"h", "path": b"/a"},
        {"type": RESPONSE, "code": 200},
        {"type": CONNECTION, "verdict": DROPPED, "drop_reason": 133, "door": 2},
        {"type": END},
    ]
    for fields in cases:
        record = make_record(**fields)
        seen = formatter.format(record, formatter.opened(record))
        read = read_line(seen.line).facts
        for end in ("source", "destination"):
            assert getattr(read, end)[:4] == getattr(seen.facts, end)[:4]
        assert read[3:] == seen.facts[3:]
        assert read.verdict == seen.facts.verdict


def test_an_unknown_revision_gives_numbers_only_and_says_so(formatter: Formatter) -> None:
    flow = flow_of(formatter, revision=77, ingress_entry=0)
    assert (flow["source"], flow["destination"]) == ({"identity": 256}, {"identity": 258})
    assert own(flow)["unresolved"] is True
    assert (own(flow)["entry"], own(flow)["rule"]) == (0, "")
    assert "ingress_allowed_by" not in flow


def test_names_are_those_of_the_records_revision(names: Names, formatter: Formatter, tmp_path: Path) -> None:
    renamed = POLICY.replace("name: web", "name: other-name")
    write(tmp_path / "snapshot", snapshot(renamed, revision=5))
    assert names.changed()
    names.load()
    formatter.forget_names()
    assert not names.changed()
    assert flow_of(formatter, revision=1, ingress_entry=0)["ingress_allowed_by"][0]["name"] == "web"
    assert flow_of(formatter, revision=5, ingress_entry=0)["ingress_allowed_by"][0]["name"] == "other-name"
    assert own(flow_of(formatter, revision=3, ingress_entry=0))["unresolved"] is True


def test_only_the_newest_snapshots_are_kept(names: Names, tmp_path: Path) -> None:
    for revision in range(2, 2 + KEPT):
        write(tmp_path / "snapshot", snapshot(POLICY.replace("public", f"p{revision}"), revision=revision))
        names.load()
    assert (names.oldest, names.newest) == (2, 1 + KEPT)


def test_a_table_serves_the_revisions_since_its_content_appeared(names: Names, tmp_path: Path) -> None:
    """A compiler that goes on keeps the revision of an equal table; the identities of revision 2 were never seen."""
    from ext_authz.compiler.compile import Compiler
    from ext_authz.identity.allocator import MemoryAllocator
    from ext_authz.model.load import load_text

    compiler = Compiler(MemoryAllocator(7), revision=0)
    made = [
        compiler.compile(load_text(WORLD + POLICY.replace("public", text), "policy.yaml").world)
        for text in ("public", "p2", "p3")
    ]
    first, last = made[0].revision, made[2].revision
    write(tmp_path / "snapshot", made[2].snapshot)
    fresh = Names(tmp_path / "snapshot")
    fresh.load()
    middle = fresh.at(made[1].revision)
    assert first < made[1].revision < last
    assert middle.identities is not None
    assert middle.policies is None
    assert fresh.at(first - 1).identities is None


def test_another_generation_forgets_the_old_names(names: Names, tmp_path: Path) -> None:
    write(tmp_path / "snapshot", snapshot(revision=9))
    names.load()
    write(tmp_path / "snapshot", snapshot(revision=2))
    names.load()
    assert (names.oldest, names.newest) == (2, 2)


def test_quiet_says_a_thing_once_and_adds_up(caplog: pytest.LogCaptureFixture) -> None:
    quiet = Quiet(logging.getLogger("x"), pause_s=1000)
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            quiet.warn("lost", 3)
        quiet.warn("other")
    assert [record.getMessage() for record in caplog.records] == ["lost", "other"]
