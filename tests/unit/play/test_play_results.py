# SPDX-License-Identifier: Apache-2.0
"""What counts as agreed, what is counted, and the lines that are printed."""

from __future__ import annotations

import io
import json

import pytest

from ext_authz.play.headers import changed, difference, joined
from ext_authz.play.results import Line, Outcome, Report, agrees, probe_title


@pytest.mark.parametrize(
    ("expect", "got", "wanted"),
    [
        ({"expect": "deny"}, {"expect": "deny", "drop": 133}, True),
        ({"expect": "deny", "drop": 133}, {"expect": "deny"}, False),
        ({"expect": "deny", "drop": 133}, {"expect": "deny", "drop": 181}, False),
        ({"status": 1}, {"status": True}, False),
        ({"upstream_headers": {"removed": ["X-Env"]}}, {"upstream_headers": {"removed": ["x-env"]}}, True),
        ({"upstream_headers": {"set": {"X-Env": "a"}}}, {"upstream_headers": {"set": {"x-env": "A"}}}, False),
        ({"upstream_headers": {"set": {"X-Env": "a"}}}, {"expect": "allow"}, False),
        (
            {"upstream_headers": {"set": {"X-Env": "a"}}},
            {"upstream_headers": {"set": {"x-env": "a"}, "removed": ["x-b"]}},
            False,
        ),
    ],
)
def test_every_stated_key_must_be_equal(expect: dict, got: dict, wanted: bool) -> None:
    assert agrees(expect, got) is wanted


def test_lines_hold_exactly_the_keys_of_the_interface() -> None:
    line = Line("A", 2, {"expect": "allow"}, Outcome({"expect": "deny"}, entry="here"))
    assert json.loads(line.json()) == {
        "case": "A",
        "probe": 2,
        "expect": {"expect": "allow"},
        "got": {"expect": "deny"},
        "ok": False,
        "skipped": None,
        "entry": "here",
    }


def test_only_stated_and_played_probes_count() -> None:
    out = io.StringIO()
    report = Report(out, as_json=True)
    for expect, outcome in (
        ({"expect": "allow"}, Outcome({"expect": "allow"})),
        ({"expect": "allow"}, Outcome({"expect": "deny"})),
        ({"expect": "allow"}, Outcome(skipped="not TCP")),
        ({}, Outcome({"expect": "allow"})),
    ):
        report.add(Line("A", 0, expect, outcome))
    report.close()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["ok"] for line in lines[:-1]] == [True, False, None, None]
    assert lines[-1] == {"passed": 1, "failed": 1, "skipped": 1}
    assert report.failed


def test_people_see_failures_and_why_probes_were_skipped() -> None:
    out = io.StringIO()
    report = Report(out, as_json=False)
    probe = {"from": "a", "to": "b", "dir": "ingress", "port": 80, "protocol": "TCP"}
    report.add(Line("A", 1, {"expect": "allow"}, Outcome({"expect": "deny"}, entry="p (f:1)"), probe_title(probe)))
    report.add(Line("B", 0, {"expect": "allow"}, Outcome(skipped="not TCP")))
    report.close()
    text = out.getvalue()
    assert "FAILED A probe 1: ingress a -> b TCP/80" in text
    assert "p (f:1)" in text
    assert text.endswith("skipped 1: not TCP\n0 passed, 1 failed, 1 skipped\n")


def test_header_changes_are_a_comma_joined_view() -> None:
    assert joined([("X-A", "1"), ("x-a", "2")]) == {"x-a": "1,2"}
    assert difference({"a": "1", "b": "2"}, {"b": "3"}) == {"set": {"b": "3"}, "removed": ["a"]}
    assert difference({"a": "1"}, {"a": "1"}) == {}


def test_what_a_proxy_adds_of_itself_is_no_change() -> None:
    sent = {"headers": {"X-Env": "dev"}}
    arrived = [("Host", "h"), ("x-env", "dev"), ("x-request-id", "1"), ("x-forwarded-proto", "http")]
    assert changed(sent, arrived) == {}
    assert changed(sent, [*arrived, ("x-new", "1")]) == {"set": {"x-new": "1"}}
    # What the client sent itself is compared, whatever it is called.
    assert changed({"headers": {"X-Request-Id": "a"}}, [("x-request-id", "b")]) == {"set": {"x-request-id": "b"}}
