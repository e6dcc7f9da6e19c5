# SPDX-License-Identifier: Apache-2.0
"""Messages of the ext_proc door for tests, made with the real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from checks import CLIENT, SERVER
from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as proc
from google.protobuf import struct_pb2

from ext_authz.service.processor import Process, Processor
from ext_authz.service.streams import Last

FILTER = "envoy.filters.http.ext_proc"


def request(
    source: str = CLIENT,
    destination: str = f"{SERVER}:80",
    *,
    method: str = "GET",
    path: str = "/public/x",
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    attributes: Mapping[str, object] | None = None,
    metadata: Mapping[str, object] | None = None,
    observed: bool = False,
) -> proc.ProcessingRequest:
    """The first message, as Envoy sends it; source "": the attribute is missing."""
    made = proc.ProcessingRequest(observability_mode=observed)
    pseudo = {":method": method, ":path": path, ":authority": "server", ":scheme": "http"}
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    put(made.request_headers.headers, [*pseudo.items(), *pairs])
    told: dict[str, object] = {"destination.address": destination} if destination else {}
    if source:
        told["source.address"] = f"[{source}]:40000" if ":" in source else f"{source}:40000"
    made.attributes[FILTER].update({**told, **(attributes or {})})
    if metadata is not None:
        held = struct_pb2.Struct()
        held.update(dict(metadata))
        made.metadata_context.filter_metadata["idmesh"].CopyFrom(held)
    return made


def response(status: str = "200", *, last: bool = False, **headers: str) -> proc.ProcessingRequest:
    made = proc.ProcessingRequest()
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    put(made.response_headers.headers, [(":status", status), *named])
    made.response_headers.end_of_stream = last
    return made


def trailers(**values: str) -> proc.ProcessingRequest:
    made = proc.ProcessingRequest()
    made.response_trailers.SetInParent()
    put(made.response_trailers.trailers, [(name.replace("_", "-"), value) for name, value in values.items()])
    return made


def put(headers: base_pb2.HeaderMap, pairs: Sequence[tuple[str, str]]) -> None:
    for key, value in pairs:
        headers.headers.add(key=key, raw_value=value.encode())


class Stream:
    """One stream of a processor; `status` is set once it ended."""

    def __init__(self, processor: Processor, **words: str) -> None:
        words = {"peer": "source-address", **words}
        self._open: Process = processor.method([(f"idmesh-{name}", value) for name, value in words.items()])
        self.status: int | None = None

    def send(self, message: proc.ProcessingRequest | bytes) -> proc.ProcessingResponse | None:
        assert self.status is None
        answer = self._open.receive(message if isinstance(message, bytes) else message.SerializeToString())
        if isinstance(answer, Last):
            self.status = answer.code
            answer = answer.message
            self._open.close()
        return None if answer is None else proc.ProcessingResponse.FromString(answer)

    def is_settled(self) -> bool:
        return self._open.is_settled()

    def close(self) -> None:
        if self.status is None:
            self.status = 0
            self._open.close()


def ask(processor: Processor, made: proc.ProcessingRequest | bytes, **words: str) -> proc.ProcessingResponse | None:
    """The answer to a stream's first message."""
    stream = Stream(processor, **words)
    try:
        return stream.send(made)
    finally:
        stream.close()


def facts(answer: proc.ProcessingResponse | None) -> dict[str, str]:
    assert answer is not None
    return {
        key: value.string_value for key, value in answer.dynamic_metadata.fields[FILTER].struct_value.fields.items()
    }


def allowed(answer: proc.ProcessingResponse | None) -> bool:
    """True if Envoy would let it pass; no answer is a denial, as the stream has ended with an error."""
    if answer is None:
        return False
    assert answer.HasField("request_headers") != answer.HasField("immediate_response")
    return answer.HasField("request_headers")
