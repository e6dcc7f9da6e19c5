# SPDX-License-Identifier: Apache-2.0
"""Laws of the ext_proc door under other settings of Envoy's filter: what they mean, and what is denied for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from envoy_backend import Backend
from envoy_flows import Rings
from envoy_grpc import echo, grpc_server, unary
from envoy_harness import (
    CLIENT,
    OTHER,
    Client,
    ask,
    policy,
    running,
    running_config,
    wait_until,
)
from envoy_procs import changed, door, service
from envoy_worker import RULES, Service
from ext_authz.engine._engine import lib

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.flow.record import Flags, FlowType
from ext_authz.xds.setup import UpstreamHttp

__all__ = ["service"]


@pytest.mark.parametrize("trailers", ["SEND", "SKIP"])
def test_grpc_calls_are_judged_and_their_status_recorded(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path, trailers: str
) -> None:
    rings = Rings(service.node.state)
    service.node.publish(policy(RULES, peer="anyone"))
    with grpc_server("pkg.Service", {"Call": unary(echo), "Other": unary(echo)}) as upstream:
        setup = replace(door(service, backend, upstream_http=UpstreamHttp.HTTP2), upstreams=(upstream,))
        modes = {"request_trailer_mode": trailers, "response_trailer_mode": trailers}
        config = changed(setup, tmp_path, {"processing_mode": modes})
        with running_config(config, tmp_path, envoy) as started:
            rings.wait(lambda _: bool(rings.hellos), "the ring")
            with grpc.insecure_channel(started.listen.text) as channel:
                call = channel.unary_unary("/pkg.Service/Call")
                assert call(b"x", timeout=10) == b"x"
                for method, message, status in (("Call", b"fail", "NOT_FOUND"), ("Other", b"x", "PERMISSION_DENIED")):
                    with pytest.raises(grpc.RpcError) as raised:
                        channel.unary_unary(f"/pkg.Service/{method}")(message, timeout=10)
                    assert raised.value.code() == grpc.StatusCode[status]
                assert raised.value.details() == "Access denied"
        found = rings.wait(lambda found: len(found) >= 5, "five records")
        assert all(Flags(one.flags) & Flags.GRPC for one in found)
        codes = [
            (one.code, bool(Flags(one.flags) & Flags.GRPC_STATUS)) for one in found if one.type == FlowType.RESPONSE
        ]
        # A status without body comes in the headers; another one only to who is shown the trailers.
        assert codes == [(0, True) if trailers == "SEND" else (200, False), (5, True)]


@pytest.mark.parametrize("mode", ["STREAMED", "BUFFERED", "BUFFERED_PARTIAL"])
def test_bodies_that_are_sent_pass_untouched(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path, mode: str
) -> None:
    """BUFFERED holds no more than Envoy's own buffer."""
    bodies = {"request_body_mode": mode, "response_body_mode": mode, "request_trailer_mode": "SEND"}
    config = changed(door(service, backend), tmp_path, {"processing_mode": bodies})
    with running_config(config, tmp_path, envoy) as started:
        client = Client(CLIENT, started.listen)
        answer = client.send("/upload", "POST", body=b"x" * 20_000)
        assert (answer.status, answer.body) == (200, b"backend")
        assert client.send("/private", "POST", body=b"x" * 20_000).status == 403


def test_a_mode_that_wants_bodies_back_is_denied(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    bodies = {"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND"}
    config = changed(door(service, backend), tmp_path, {"processing_mode": bodies})
    with running_config(config, tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/public/x").status == 403
        assert not backend.requests


def test_a_mode_that_hides_requests_shows_no_response(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    """Too late for the backend, which doctor says; but nobody gets to see what came of it."""
    config = changed(door(service, backend), tmp_path, {"processing_mode": {"request_header_mode": "SKIP"}})
    with running_config(config, tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/public/x").status == 403


def test_without_any_word_of_the_peer_all_is_denied_172(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    rings = Rings(service.node.state)
    config = changed(door(service, backend), tmp_path, {"request_attributes": ["destination.address"]})
    with running_config(config, tmp_path, envoy) as started:
        rings.wait(lambda _: bool(rings.hellos), "the ring")
        assert ask(CLIENT, started, "/public/x").status == 403
        found = rings.wait(bool, "the record")
        assert found[0].drop_reason == lib.IDM_DROP_UNKNOWN_SENDER


def test_disregarding_our_answer_lets_nothing_pass(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    """disable_immediate_response makes Envoy drop a denial; the stream's error denies all the same."""
    config = changed(door(service, backend), tmp_path, {"disable_immediate_response": True})
    with running_config(config, tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/private").status >= 400
        assert not backend.requests


def test_observability_mode_denies_nothing_and_records_all(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    rings = Rings(service.node.state)
    with running(door(service, backend, observe=True), tmp_path, envoy) as started:
        rings.wait(lambda _: bool(rings.hellos), "the ring")
        assert ask(CLIENT, started, "/private").status == 200
        found = rings.wait(lambda found: len(found) >= 2, "two records")
        assert [one.type for one in found] == [FlowType.REQUEST, FlowType.RESPONSE]
        assert found[0].verdict == lib.IDM_DROPPED
        assert all(Flags(one.flags) & Flags.SHADOW for one in found)
        assert found[1].code == 200


@pytest.mark.parametrize("forged", [{}, {"X-Forwarded-For": CLIENT}])
def test_behind_the_listener_filter_the_peer_is_the_connections(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path, forged: dict[str, str]
) -> None:
    """Even where Envoy itself believes X-Forwarded-For."""
    setup = door(
        service, backend, listener_filter=True, use_remote_address=False, state=service.node.state, trusted_hops=1
    )
    with running(setup, tmp_path, envoy) as started:
        wait_until(lambda: ask(CLIENT, started, "/public/x", headers=forged).status == 200, "the module")
        assert ask(OTHER, started, "/public/x", headers=forged).status == 403
