# SPDX-License-Identifier: Apache-2.0
"""GET /metrics over HTTP/1.1, on loopback unless told otherwise. Small: Prometheus asks, nobody else needs to."""

from __future__ import annotations

import asyncio
import ipaddress

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

_HEAD_MAX = 8192
_TIMEOUT_S = 5.0
_CLIENTS_MAX = 16


class MetricsAddressError(ValueError):
    """The address is malformed or not allowed."""


def parse_metrics_address(text: str, anywhere: bool = False) -> tuple[str, int]:
    """
    Host and port of HOST:PORT.

    Raises:
        MetricsAddressError: Malformed, or not loopback without `anywhere`.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise MetricsAddressError(f"{text}: want HOST:PORT with a port from 1 to 65535")
    try:
        literal = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise MetricsAddressError(f"{text}: the host must be an IP address or localhost") from None
    if not literal.is_loopback and not anywhere:
        raise MetricsAddressError(f"{text}: metrics tell who talks to whom; they are served on loopback only")
    return str(literal), int(port)


class Endpoint:
    """Serves one registry."""

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry) -> None:
        self._address = address
        self._registry = registry
        self._server: asyncio.Server | None = None
        self._clients = 0

    async def start(self) -> None:
        """
        Raises:
            OSError: The address cannot be had.
        """
        host, port = self._address
        self._server = await asyncio.start_server(self._serve, host, port, limit=_HEAD_MAX)

    async def stop(self) -> None:
        if self._server:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        writer.transport.set_write_buffer_limits(0)
        try:
            if self._clients <= _CLIENTS_MAX:
                async with asyncio.timeout(_TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await self._answer(head))
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            writer.transport.abort()
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or words[0] not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"")
        if words[1].partition("?")[0] != "/metrics":
            return _response("404 Not Found", "text/plain", b"see /metrics\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        encode, kind = choose_encoder(fields.get("accept", ""))
        body = await asyncio.to_thread(encode, self._registry)
        return _response("200 OK", kind, body, words[0] == "HEAD")


def _response(status: str, kind: str, body: bytes, head_only: bool = False) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if head_only else body)
