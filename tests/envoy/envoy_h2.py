# SPDX-License-Identifier: Apache-2.0
"""A small HTTP/2 client over prior knowledge, bound to a pod's address."""

from __future__ import annotations

import socket

import h2.config
import h2.connection
import h2.events
from envoy_harness import Answer

from ext_authz.xds.setup import Target


class H2Client:
    """Requests are sent together and answered in any order."""

    def __init__(self, source: str, to: Target) -> None:
        self._socket = socket.create_connection((to.host, to.port), timeout=5, source_address=(source, 0))
        self._authority = to.text
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,  # broken requests are what some tests are about
            normalize_outbound_headers=False,
        )
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()
        self._flush()

    def __enter__(self) -> H2Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, paths: list[str], method: str = "GET", headers: tuple[tuple[str, str], ...] = ()) -> list[Answer]:
        """Answers in the order of the paths; status 0: the stream was reset."""
        streams = []
        for path in paths:
            stream = self._h2.get_next_available_stream_id()
            pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", self._authority)]
            self._h2.send_headers(stream, [*pseudo, *headers], end_stream=True)
            streams.append(stream)
        self._flush()
        return self._answers(streams)

    def _answers(self, streams: list[int]) -> list[Answer]:
        heads: dict[int, dict[str, str]] = {}
        bodies: dict[int, bytes] = dict.fromkeys(streams, b"")
        open_streams = set(streams)
        while open_streams:
            data = self._socket.recv(65536)
            if not data:
                break
            for event in self._h2.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    heads[event.stream_id] = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    open_streams.discard(event.stream_id)
                elif isinstance(event, h2.events.ConnectionTerminated):
                    open_streams.clear()
            self._flush()
        return [self._answer(heads.get(stream, {}), bodies[stream]) for stream in streams]

    def _answer(self, head: dict[str, str], body: bytes) -> Answer:
        return Answer(int(head.get(":status", 0)), body, head)

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())
