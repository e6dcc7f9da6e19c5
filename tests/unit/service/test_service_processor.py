# SPDX-License-Identifier: Apache-2.0
"""Laws of the ext_proc door, from the bytes of a stream's messages to the bytes of its answers."""

from __future__ import annotations

import pytest
from checks import CLIENT, OTHER, STRANGER, checker
from envoy.service.ext_proc.v3 import external_processor_pb2 as proc
from hypothesis import given, settings
from hypothesis import strategies as st
from procs import FILTER, Stream, allowed, ask, facts, put, request, response, trailers

from ext_authz.service.processor import Processor

_INVALID, _DENIED, _PRECONDITION = 3, 7, 9


@pytest.fixture(scope="module")
def door() -> Processor:
    return Processor(checker())


def test_what_no_rule_allows_is_answered_403_and_the_stream_ends(door: Processor) -> None:
    stream = Stream(door)
    answer = stream.send(request(path="/private"))
    assert answer is not None
    assert stream.status == _DENIED
    denied = answer.immediate_response
    assert (denied.status.code, denied.body, denied.details) == (403, b"Access denied\r\n", "idmesh_denied")
    assert not denied.HasField("grpc_status")
    option = denied.headers.set_headers[0]
    assert (option.header.key, option.header.raw_value.decode()) == ("x-idmesh-decision-id", facts(answer)["decision"])


def test_grpc_is_denied_with_status_7_and_one_line(door: Processor) -> None:
    answer = ask(door, request(path="/private", headers={"content-type": "application/grpc"}))
    assert answer is not None
    assert answer.immediate_response.grpc_status.status == 7
    assert answer.immediate_response.body == b"Access denied"


@pytest.mark.parametrize(
    ("path", "sent", "set_to", "append", "removed"),
    [
        ("/add", {"x-env": "dev"}, b"prod", True, []),
        ("/add", {}, b"prod", True, []),
        ("/replace", {"x-env": "dev"}, b"prod", False, []),
        ("/delete", {"x-env": "dev"}, None, False, ["x-env"]),
        ("/delete", {"x-env": "prod"}, None, False, []),
    ],
)
def test_header_changes(
    door: Processor, path: str, sent: dict[str, str], set_to: bytes | None, append: bool, removed: list[str]
) -> None:
    answer = ask(door, request(path=path, headers=sent))
    assert answer is not None
    mutation = answer.request_headers.response.header_mutation
    assert list(mutation.remove_headers) == removed
    assert [option.header.raw_value for option in mutation.set_headers] == ([set_to] if set_to else [])
    for option in mutation.set_headers:
        assert option.append.value == append
        assert option.append_action == (option.APPEND_IF_EXISTS_OR_ADD if append else option.OVERWRITE_IF_EXISTS_OR_ADD)


def test_value_counts_where_there_is_no_raw_value(door: Processor) -> None:
    made = request(path="/delete")
    made.request_headers.headers.headers.add(key="x-env", value="prod")
    answer = ask(door, made)
    assert answer is not None
    assert not answer.request_headers.response.header_mutation.remove_headers


# ---- who asks, for what ----


def test_without_the_filters_word_source_address_is_nobodys(door: Processor) -> None:
    """Where X-Forwarded-For may be believed, a client writes that attribute."""
    assert facts(ask(door, request(), peer="metadata"))["drop"] == "172"


@pytest.mark.parametrize("text", ["10.0.0.11", "10.0.0.11:", "[10.0.0.11]:5", "10.0.0.11:5", "[fd00::11]:80"])
def test_an_address_may_come_with_or_without_port(door: Processor, text: str) -> None:
    wanted = text != "10.0.0.11:"
    assert allowed(ask(door, request("", attributes={"source.address": text}))) == wanted


def test_the_listener_filter_counts_where_source_address_does_not(door: Processor) -> None:
    assert allowed(ask(door, request(OTHER, metadata={"address": CLIENT}), peer="metadata"))


def test_attributes_of_other_filters_say_nothing(door: Processor) -> None:
    made = request("")
    made.attributes["other"].update({"source.address": f"{CLIENT}:1"})
    assert facts(ask(door, made))["drop"] == "172"


@pytest.mark.parametrize("named", ["default/server:80", "10.0.0.21:80"])
def test_a_named_destination_counts_where_the_connections_is_unknown(door: Processor, named: str) -> None:
    assert allowed(ask(door, request(destination=""), destination=named))


def test_a_destination_whose_port_nobody_knows_is_denied_165(door: Processor) -> None:
    assert facts(ask(door, request(destination="")))["drop"] == "165"
    assert facts(ask(door, request(destination=""), destination="default/server"))["drop"] == "165"
    assert allowed(ask(door, request(destination=""), destination="default/server", port="80"))


def test_who_tells_the_peer_is_one_of_two(door: Processor) -> None:
    with pytest.raises(KeyError):
        Stream(door, peer="x-forwarded-for")


# ---- what comes after ----

GRPC = {"content-type": "application/grpc"}  # whose response is known only at its end
OPEN = request(headers=GRPC)


def test_a_stream_ends_well_with_its_responses_headers(door: Processor) -> None:
    stream = Stream(door)
    assert allowed(stream.send(request()))
    answer = stream.send(response())
    assert answer is not None
    assert answer.HasField("response_headers")
    assert stream.status == 0


@pytest.mark.parametrize("end", [response(grpc_status="5"), response(last=True), trailers(grpc_status="0")])
def test_a_grpc_stream_ends_well_with_its_status(door: Processor, end: proc.ProcessingRequest) -> None:
    stream = Stream(door)
    assert allowed(stream.send(OPEN))
    if end.HasField("response_trailers"):
        assert stream.send(response()) is not None
        assert stream.status is None
    assert stream.send(end) is not None
    assert stream.status == 0


def body(**said: object) -> proc.ProcessingRequest:
    return proc.ProcessingRequest(request_body={"body": b"x" * 1000, **said})


def request_trailers() -> proc.ProcessingRequest:
    made = proc.ProcessingRequest()
    made.request_trailers.SetInParent()
    return made


def test_all_that_follows_an_allowed_request_passes_untouched(door: Processor) -> None:
    stream = Stream(door)
    assert not stream.is_settled()
    assert allowed(stream.send(OPEN))
    assert stream.is_settled()
    said = [
        (body(), "request_body"),
        (body(end_of_stream=True), "request_body"),
        (request_trailers(), "request_trailers"),
        (response(), "response_headers"),
        (proc.ProcessingRequest(response_body={"body": b"y"}), "response_body"),
        (trailers(grpc_status="0"), "response_trailers"),
    ]
    for message, name in said:
        answer = stream.send(message)
        assert answer is not None
        assert answer.WhichOneof("response") == name
        assert answer.ByteSize() == 2  # CONTINUE is to say nothing
    assert stream.status == 0


def test_a_response_may_overtake_the_end_of_its_request(door: Processor) -> None:
    stream = Stream(door)
    for message in (OPEN, response(), body(), request_trailers(), trailers(grpc_status="0")):
        assert stream.send(message) is not None


@pytest.mark.parametrize(
    "messages",
    [
        [response()],
        [body()],
        [trailers()],
        [OPEN, OPEN],
        [OPEN, response(), response()],
        [OPEN, request_trailers(), body()],
        [OPEN, request_trailers(), request_trailers()],
    ],
)
def test_what_comes_out_of_order_ends_the_stream_with_an_error(
    door: Processor, messages: list[proc.ProcessingRequest]
) -> None:
    stream = Stream(door)
    for message in messages[:-1]:
        assert stream.send(message) is not None
    assert stream.send(messages[-1]) is None
    assert stream.status == _PRECONDITION


@pytest.mark.parametrize("mode", ["request_body_mode", "response_body_mode"])
@pytest.mark.parametrize("value", ["FULL_DUPLEX_STREAMED", "GRPC"])
def test_body_modes_that_want_bodies_back_end_the_stream(door: Processor, mode: str, value: str) -> None:
    made = request()
    setattr(made.protocol_config, mode, getattr(made.protocol_config, mode) + 4 + (value == "GRPC"))
    stream = Stream(door)
    assert stream.send(made) is None
    assert stream.status == _PRECONDITION


def test_observed_requests_get_no_answer_and_all_may_follow(door: Processor) -> None:
    before = door.observed
    stream = Stream(door)
    messages = [request(path="/private", headers=GRPC, observed=True), response(), trailers()]
    for message in messages:
        assert stream.status is None
        message.observability_mode = True
        assert stream.send(message) is None
    assert door.observed == before + 1
    assert stream.status == 0


# ---- bytes ----


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x12\x05ab", request().SerializeToString()[:40]])
def test_what_is_no_message_ends_the_stream(door: Processor, data: bytes) -> None:
    stream = Stream(door)
    assert stream.send(data) is None
    assert stream.status == _INVALID


def test_two_messages_in_one_end_the_stream(door: Processor) -> None:
    """Of a oneof the last would count, for one reader or another."""
    stream = Stream(door)
    assert stream.send(request(path="/private").SerializeToString() + request().SerializeToString()) is None
    assert stream.status == _INVALID


def test_an_unknown_message_ends_the_stream(door: Processor) -> None:
    stream = Stream(door)
    assert stream.send(b"\x7a\x00") is None  # field 15
    assert stream.status == _INVALID


@pytest.mark.parametrize("name", [":method", ":path", ":authority"])
def test_a_pseudo_header_that_comes_twice_is_denied(door: Processor, name: str) -> None:
    made = request()
    put(made.request_headers.headers, [(name, "/public/y")])
    answer = ask(door, made)
    assert not allowed(answer)
    assert facts(answer)["error"] == "malformed request"


def test_a_request_without_method_is_denied(door: Processor) -> None:
    assert not allowed(ask(door, request(method="")))


def test_attributes_that_come_twice_are_denied(door: Processor) -> None:
    once = proc.ProcessingRequest()
    once.attributes[FILTER].update({"source.address": f"{CLIENT}:1"})
    assert not allowed(ask(door, request(OTHER).SerializeToString() + once.SerializeToString()))


def test_too_many_headers_are_denied(door: Processor) -> None:
    assert allowed(ask(door, request(headers={f"h{i}": "x" for i in range(300)})))
    assert not allowed(ask(door, request(headers={f"h{i}": "x" for i in range(600)})))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_bytes_that_are_no_message_let_nothing_pass(messages: list[bytes]) -> None:
    stream = Stream(_DOOR)
    for message in messages:
        assert not allowed(stream.send(message))
        assert not stream.is_settled()
        if stream.status is not None:
            return
    stream.close()


@settings(max_examples=400, deadline=None)
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


_DOOR = Processor(checker())
