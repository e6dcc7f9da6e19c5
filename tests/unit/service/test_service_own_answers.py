# SPDX-License-Identifier: Apache-2.0
"""Responses without a request: Envoy's own answers pass the ext_proc door, an upstream's never."""

from __future__ import annotations

import pytest
from checks import checker
from procs import FILTER, Stream, allowed, request, response

from ext_authz.service.processor import Processor

_PRECONDITION = 9


@pytest.fixture
def door() -> Processor:
    return Processor(checker())


@pytest.mark.parametrize("details", ["path_normalization_failed", "http1.codec_error", "cors_response"])
def test_envoys_own_answer_passes_and_counts_as_no_verdict(door: Processor, details: str) -> None:
    stream = Stream(door)
    own = response("307")
    own.attributes[FILTER].update({"response.code_details": details})
    answer = stream.send(own)
    assert answer is not None
    assert answer.HasField("response_headers")
    assert stream.status is None
    assert sum(door.counts.values()) == 0
    stream.close()


@pytest.mark.parametrize("details", [None, "", "via_upstream", "cache.response_from_cache_filter"])
def test_an_upstreams_answer_to_a_request_that_nobody_judged_ends_the_stream(
    door: Processor, details: str | None
) -> None:
    stream = Stream(door)
    served = response("200")
    if details is not None:
        served.attributes[FILTER].update({"response.code_details": details})
    assert stream.send(served) is None
    assert stream.status == _PRECONDITION


def test_details_of_another_filter_or_told_twice_count_for_nothing(door: Processor) -> None:
    other = response("307")
    other.attributes["envoy.filters.http.other"].update({"response.code_details": "path_normalization_failed"})
    assert Stream(door).send(other) is None
    twice = response("307")
    twice.attributes[FILTER].update({"response.code_details": "path_normalization_failed"})
    said = twice.SerializeToString()
    assert Stream(door).send(said + said[said.rindex(b"\x4a") :]) is None


def test_after_its_own_answer_envoy_may_still_not_skip_the_judge(door: Processor) -> None:
    stream = Stream(door)
    own = response("307")
    own.attributes[FILTER].update({"response.code_details": "path_normalization_failed"})
    assert stream.send(own) is not None
    assert not stream.is_settled()
    assert not allowed(stream.send(request(path="/private")))
