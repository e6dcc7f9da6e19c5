# SPDX-License-Identifier: Apache-2.0
"""Laws of the ext_authz door, from the bytes of a request to the bytes of an answer."""

from __future__ import annotations

import pytest
from checks import (
    CLIENT,
    EGRESS,
    OTHER,
    POLICY,
    STRANGER,
    WORLD,
    allowed,
    ask,
    checker,
    facts,
    request,
    snapshot,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ext_authz.engine import Engine, SnapshotError
from ext_authz.service.checker import Checker
from ext_authz.service.store import Store


@pytest.fixture(scope="module")
def door() -> Checker:
    return checker()


def test_what_no_rule_allows_is_403_with_the_id_of_the_decision(door: Checker) -> None:
    response = ask(door, request(path="/private"))
    assert not allowed(response)
    assert response.status.code == 7
    assert response.denied_response.status.code == 403
    assert response.denied_response.body == "Access denied\r\n"
    header = response.denied_response.headers[0].header
    assert (header.key, header.value) == ("x-idmesh-decision-id", facts(response)["decision"])


def test_decision_ids_differ(door: Checker) -> None:
    assert len({facts(ask(door, request()))["decision"] for _ in range(1000)}) == 1000


def test_raw_and_joined_headers_decide_alike(door: Checker) -> None:
    for raw in (False, True):
        response = ask(door, request(path="/add", headers={"x-env": "dev"}, raw=raw))
        option = response.ok_response.headers[0]
        assert (option.header.key, option.header.value, option.append.value) == ("x-env", "prod", True)


def test_add_to_a_missing_header_sets_it(door: Checker) -> None:
    """Envoy appends only to headers that are there."""
    option = ask(door, request(path="/add")).ok_response.headers[0]
    assert (option.header.value, option.append.value) == ("prod", False)


def test_replace_overwrites(door: Checker) -> None:
    option = ask(door, request(path="/replace", headers={"x-env": "dev"})).ok_response.headers[0]
    assert (option.header.value, option.append.value) == ("prod", False)


def test_delete_removes_a_wrong_value(door: Checker) -> None:
    response = ask(door, request(path="/delete", headers={"x-env": "dev"}))
    assert list(response.ok_response.headers_to_remove) == ["x-env"]
    assert not ask(door, request(path="/delete", headers={"x-env": "prod"})).ok_response.headers_to_remove


def test_a_path_that_is_not_canonical_is_denied(door: Checker) -> None:
    for path in ("/public/../private", "/public//x", "/public/%2e%2e/private", "/public/%2fx", "public/x", ""):
        assert not allowed(ask(door, request(path=path))), path


def test_a_pipe_is_no_peer(door: Checker) -> None:
    made = request("")
    made.attributes.source.address.pipe.path = "/run/x"
    assert facts(ask(door, made))["drop"] == "172"


def test_an_unknown_peer_is_world(door: Checker) -> None:
    response = ask(door, request(STRANGER))
    assert not allowed(response)
    assert facts(response)["source"] == "2"


def test_an_unknown_endpoint_is_denied_165(door: Checker) -> None:
    response = ask(door, request(destination="10.9.9.9"))
    assert not allowed(response)
    assert facts(response)["drop"] == "165"


def test_mapped_ipv4_is_ipv4(door: Checker) -> None:
    assert allowed(ask(door, request("::ffff:10.0.0.11")))


def test_a_peer_by_its_ipv6_address(door: Checker) -> None:
    assert facts(ask(door, request("fd00::11")))["source"] == facts(ask(door, request(CLIENT)))["source"]


# ---- what the listener filter says ----


def identity_of(address: str) -> int:
    return Engine.open(snapshot()).resolve(address)[0]


@pytest.mark.parametrize(
    "said",
    [
        {"identity": 99999, "evidence": 2},
        {"identity": 2, "evidence": 2},
        {"identity": "@client", "evidence": 0},  # rests on nothing
        {"identity": "@client", "evidence": 2, "domain": "8"},  # another domain's number
        {"identity": "@other", "evidence": 4},
    ],
)
def test_evidence_that_disagrees_is_denied_172(door: Checker, said: dict[str, object]) -> None:
    known = {"@client": identity_of(CLIENT), "@other": identity_of(OTHER)}
    response = ask(door, request(metadata={key: known.get(str(value), value) for key, value in said.items()}))
    assert not allowed(response)
    assert facts(response)["drop"] == "172"


@pytest.mark.parametrize("evidence", ["datapath", "certificate", "datapath,certificate"])
def test_required_evidence_that_is_missing_is_denied_172(door: Checker, evidence: str) -> None:
    told = {"trust_domain": "td", "certificate": "-;-"} if "certificate" in evidence else {}
    assert facts(ask(door, request(), require=evidence, **told))["drop"] == "172"


@pytest.mark.parametrize(
    "said", [{"identity": -1, "evidence": 2}, {"identity": 1.5, "evidence": 2}, {"identity": "x"}, {"evidence": 99}]
)
def test_metadata_that_makes_no_sense_is_denied(door: Checker, said: dict[str, object]) -> None:
    assert not allowed(ask(door, request(metadata=said)))


# ---- which destination, which direction ----


@pytest.mark.parametrize("named", ["default/server:80", "10.0.0.21:80", "default/server"])
def test_a_destination_named_by_the_route_counts(door: Checker, named: str) -> None:
    assert allowed(ask(door, request(destination="127.0.0.1"), destination=named))
    assert allowed(ask(door, request(destination="127.0.0.1", extensions={"idmesh.destination": named})))


def test_the_port_of_the_filter_counts(door: Checker) -> None:
    made = request(destination="127.0.0.1", port=10000)
    assert not allowed(ask(door, made, destination="default/server"))
    assert allowed(ask(door, made, destination="default/server", port="80"))


@pytest.mark.parametrize("named", ["default/nobody", "nonsense", "10.0.0.21:99999", "10.0.0.21:x", ":80", "/", "[::1"])
def test_a_destination_that_is_nobodys_is_denied_165(door: Checker, named: str) -> None:
    assert facts(ask(door, request(), destination=named))["drop"] == "165"


def test_egress_judges_the_source() -> None:
    door = checker(snapshot(POLICY + EGRESS))
    assert not allowed(ask(door, request(), direction="egress"))
    assert allowed(ask(door, request(destination=OTHER), direction="egress"))


def test_a_word_of_the_filter_that_comes_twice_is_refused(door: Checker) -> None:
    with pytest.raises(ValueError, match="twice"):
        door.method([("idmesh-direction", "ingress"), ("idmesh-direction", "egress")])


# ---- connections ----


def test_a_connection_is_judged_by_l3_and_l4(door: Checker) -> None:
    assert allowed(ask(door, request(port=5432, http=False)))
    assert not allowed(ask(door, request(OTHER, port=5432, http=False)))


def test_a_connection_that_needs_a_proxy_is_closed_180(door: Checker) -> None:
    response = ask(door, request(http=False))
    assert not allowed(response)
    assert facts(response)["drop"] == "180"


def test_a_connection_passes_where_an_http_filter_follows(door: Checker) -> None:
    assert allowed(ask(door, request(http=False), next="http"))
    assert not allowed(ask(door, request(OTHER, http=False), next="http"))


# ---- bytes ----


def test_a_message_that_comes_twice_is_refused(door: Checker) -> None:
    """Merging is where two readers of the same bytes could differ."""
    twice = request().SerializeToString() * 2
    response = ask(door, twice)
    assert not allowed(response)
    assert facts(response)["error"] == "malformed request"


def test_too_many_headers_are_denied(door: Checker) -> None:
    assert allowed(ask(door, request(headers={f"h{i}": "x" for i in range(300)})))
    assert not allowed(ask(door, request(headers={f"h{i}": "x" for i in range(600)})))


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_request_are_denied(data: bytes) -> None:
    assert not allowed(ask(_DOOR, data))


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_a_denied_request_stays_denied_however_its_bytes_are_cut(data: st.DataObject) -> None:
    """Of a request that is denied for its peer and path alike no damage makes an allowed one."""
    whole = bytearray(request(STRANGER, path="/private", headers={"x-a": "b"}).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        change = data.draw(st.sampled_from(["flip", "drop", "cut"]))
        if change == "flip":
            whole[at] = data.draw(st.integers(0, 255))
        elif change == "drop" and len(whole) > 1:
            del whole[at]
        else:
            del whole[max(1, at) :]
    assert not allowed(ask(_DOOR, bytes(whole)))


_DOOR = checker()


# ---- the snapshot in force ----


def test_a_refused_snapshot_leaves_the_last_in_force() -> None:
    store = Store()
    store.load(snapshot())
    door = Checker(store)
    good = snapshot(revision=2)
    for bad in (b"", b"x" * 4096, good[:-9], good[:200] + b"\xff" + good[201:], good[:8] + b"\x63" + good[9:]):
        with pytest.raises(SnapshotError):
            store.load(bad)
        assert store.revision == 1
        assert allowed(ask(door, request()))


def test_a_new_snapshot_decides_the_next_request() -> None:
    store = Store()
    store.load(snapshot())
    door = Checker(store)
    assert allowed(ask(door, request()))
    store.load(snapshot(POLICY.replace("/public/", "/elsewhere/"), revision=2))
    response = ask(door, request())
    assert not allowed(response)
    assert facts(response)["revision"] == "2"


def test_a_named_destination_is_looked_up_in_the_snapshot_in_force() -> None:
    """The cache of the last name must not outlive its snapshot."""
    store = Store()
    store.load(snapshot())
    door = Checker(store)
    assert allowed(ask(door, request(), destination="default/server"))
    extra = WORLD.replace("name: client,", "name: zclient,")  # the endpoints' order changes
    store.load(snapshot(POLICY, extra, revision=2))
    assert allowed(ask(door, request(), destination="default/server"))
    assert facts(ask(door, request(), destination="default/client"))["drop"] == "165"


def test_an_error_inside_denies_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    door = checker()
    answer = door.method(())
    monkeypatch.setattr(door, "note_error", lambda _result: 1 / 0)
    from envoy.service.auth.v3 import external_auth_pb2

    response = external_auth_pb2.CheckResponse.FromString(answer(b"\xff"))
    assert not allowed(response)
    assert response.denied_response.status.code == 403
    assert door.counts["error"] == 1
