# SPDX-License-Identifier: Apache-2.0
"""Laws of filters: within one all conditions, of several one is enough, and what is excluded stays out."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ext_authz.flow.facts import End, Facts
from ext_authz.flow.filters import FilterError, make_filter
from ext_authz.flow.selectors import SelectorError, parse_selector
from ext_authz.pb.idmesh.v1 import node_pb2

CLIENT = End(256, "default", "client", ("k8s:app=client", "k8s:tier=a", "k8s:io.kubernetes.pod.namespace=default"))
SERVER = End(258, "prod", "server-7f", ("k8s:app=server", "any:tier=b"))
WORLD = End(2, "", "", ("reserved:world",))
FLOW = Facts("DROPPED", CLIENT, SERVER, (40000, 80), "/api/v1?HUBBLE_REDACTED", 403, "ab" * 16, "POLICY_DENIED", "GET",
             "module")  # fmt: skip

HOLD: list[dict[str, Any]] = [
    {},
    {"verdict": ["dropped"]},
    {"verdict": ["FORWARDED", "DROPPED"]},
    {"namespace": ["default"]},
    {"namespace": ["x", "prod"]},
    {"label": ["app=client"]},
    {"label": ["app in (x, server)"]},
    {"path": "^/api/v[0-9]+"},
    {"path": "v1"},
    {"status": ["403"]},
    {"status": ["4+"]},
    {"status": ["40+", "500"]},
    {"uuid": ["AB" * 16]},
    {"uuid": ["abababab-abab-abab-abab-abababababab"]},
    {"drop_reason": ["policy_denied"]},
    {"drop_reason": ["133"]},
    {"method": ["get"]},
    {"from_pod": ["default/client"]},
    {"from_pod": ["default/"]},
    {"from_pod": ["cli"]},
    {"from_pod": ["def"]},
    {"to_pod": ["prod/server"]},
    {"pod": ["server"]},
    {"door": ["MODULE"]},
    {"port": [80]},
    {"port": [40000]},
    {"identity": [258]},
    {"verdict": ["DROPPED"], "namespace": ["prod"], "status": ["4+"], "path": "api"},
]
FAIL: list[dict[str, Any]] = [
    {"verdict": ["FORWARDED"]},
    {"namespace": ["def"]},
    {"label": ["app=other"]},
    {"label": ["app=client,tier=b"]},
    {"path": "^/v1"},
    {"path": "s3cr3t"},
    {"status": ["5+"]},
    {"status": ["40"]},
    {"uuid": ["00"]},
    {"drop_reason": ["189"]},
    {"method": ["POST"]},
    {"from_pod": ["prod/server"]},
    {"from_pod": ["default/x"]},
    {"to_pod": ["client"]},
    {"pod": ["default/server"]},
    {"door": ["ext-authz"]},
    {"port": [8]},
    {"identity": [2]},
    {"verdict": ["DROPPED"], "namespace": ["other"]},
]


def message(fields: dict[str, Any]) -> Any:
    return node_pb2.FlowFilter(**fields)


@pytest.mark.parametrize("fields", HOLD, ids=str)
def test_a_condition_holds(fields: dict[str, Any]) -> None:
    passes = make_filter([message(fields)])
    assert passes is not None
    assert passes(FLOW)


@pytest.mark.parametrize("fields", FAIL, ids=str)
def test_a_condition_fails(fields: dict[str, Any]) -> None:
    passes = make_filter([message(fields)])
    assert passes is not None
    assert not passes(FLOW)


@given(st.lists(st.sampled_from(HOLD + FAIL), max_size=3), st.lists(st.sampled_from(HOLD + FAIL), max_size=3))
def test_one_filter_is_enough_and_exclusion_wins(white: list[dict[str, Any]], black: list[dict[str, Any]]) -> None:
    passes = make_filter([message(each) for each in white], [message(each) for each in black])
    wanted = (not white or any(each in HOLD for each in white)) and not any(each in HOLD for each in black)
    assert wanted if passes is None else passes(FLOW) == wanted


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"verdict": ["NO"]}, "verdict NO"), ({"door": ["x"]}, "door x"), ({"status": ["5xx"]}, "status"),
     ({"status": ["+"]}, "status"), ({"drop_reason": ["1"]}, "drop reason 1"), ({"path": "("}, "path"),
     ({"path": "x" * 5000}, "path"), ({"label": ["a=b,"]}, "label"), ({"label": [""]}, "label"),
     ({"namespace": ["x"] * 300}, "namespace")],
)  # fmt: skip
def test_a_filter_that_is_not_understood_is_named(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(FilterError, match=reason):
        make_filter([message(fields)])


def test_a_hostile_pattern_costs_no_time() -> None:
    passes = make_filter([message({"path": "(a+)+$"})])
    assert passes is not None
    assert not passes(FLOW._replace(path="a" * 1000 + "!"))


def test_what_has_no_name_matches_no_pod() -> None:
    flow = FLOW._replace(source=WORLD)
    for text in ("", "x", "/"):
        passes = make_filter([message({"from_pod": [text]})])
        assert passes is not None
        assert not passes(flow)


@pytest.mark.parametrize(
    ("text", "holds"),
    [("app=client", True), ("app==client", True), ("k8s:app=client", True), ("any:app=client", False),
     ("app!=x", True), ("app!=client", False), ("app", True), ("!app", False), ("!zone", True),
     ("zone notin (a,b)", True), ("app notin (client)", False), ("app in (client,x),tier=a", True),
     ("io.kubernetes.pod.namespace=default", True), ("app = client , tier = a", True)],
)  # fmt: skip
def test_label_selectors(text: str, holds: bool) -> None:
    assert parse_selector(text)(CLIENT.labels) is holds


@given(st.text(max_size=30))
def test_any_text_is_a_selector_or_refused(text: str) -> None:
    with contextlib.suppress(SelectorError):
        parse_selector(text)(CLIENT.labels)
