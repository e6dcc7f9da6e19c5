# SPDX-License-Identifier: Apache-2.0
"""The client's side of a probe: connects from the peer's own address, and tells what it saw."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any

from ext_authz.play.netns import Namespace
from ext_authz.play.upstream import GREETING, MARK

TIMEOUT_S = 10.0
# Envoy answers a path with escaped slashes by pointing at the plain one, as browsers then follow.
_REDIRECT = 307
PING = b"ping\n"
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Seen:
    """
    name: the client's own address and port, by which the door's record is found.

    through: an answer of the upstream came. status 0: no HTTP answer at all. outcome: how a connection ended on which
    nothing came.
    """

    name: str
    through: bool
    status: int = 0
    location: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=())
    outcome: str = ""


def talk(namespace: Namespace, source: str, target: tuple[str, int], first: bytes = PING) -> Seen:
    """Connect, say something, and see whether the upstream greets."""
    with _bound(namespace, source) as (line, name):
        answer, outcome = b"", "connection closed"
        try:
            line.connect(target)
            line.sendall(first)
            answer = line.recv(64)
            if not answer:  # an end of the other side's words only, or of the connection?
                line.sendall(first)
                line.sendall(first)
        except ConnectionError:
            outcome = "connection reset"
        except OSError:
            outcome = "no answer"
        return Seen(name, answer == GREETING, outcome="" if answer else outcome)


def client_hello(name: str) -> bytes:
    """What a TLS client says first; an empty name: it names no server."""
    said = ssl.MemoryBIO()
    line = _context().wrap_bio(ssl.MemoryBIO(), said, server_hostname=name or None)
    with contextlib.suppress(ssl.SSLWantReadError):
        line.do_handshake()
    return said.read()


def request(
    namespace: Namespace, source: str, target: tuple[str, int], http: Mapping[str, Any], server_name: str | None = None
) -> Seen:
    """Send one HTTP/1.1 request; with a server name (empty: none is named) inside TLS."""
    with _bound(namespace, source) as (line, name):
        try:
            line.connect(target)
            if server_name is None:
                return _exchange(line, name, http)
            with _context().wrap_socket(line, server_hostname=server_name or None) as wrapped:
                return _exchange(wrapped, name, http)
        except (OSError, HTTPException):
            return Seen(name, False)


def _exchange(line: socket.socket, name: str, http: Mapping[str, Any]) -> Seen:
    line.sendall(_head(http))
    answer = HTTPResponse(line, method=http["method"])
    answer.begin()
    body = answer.read()
    through = answer.getheader(MARK) is not None
    location = answer.getheader("location", "") if answer.status == _REDIRECT else ""
    headers = tuple((key, value) for key, value in json.loads(body)) if through and body else ()
    return Seen(name, through, answer.status, location or "", headers)


def _context() -> ssl.SSLContext:
    """Whoever answers is believed: only the name that is asked for matters."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _head(http: Mapping[str, Any]) -> bytes:
    lines = [f"{http['method']} {http['path']} HTTP/1.1", f"Host: {http.get('host', '')}"]
    for name, value in (http.get("headers") or {}).items():
        for item in value if isinstance(value, list) else [value]:
            lines.append(f"{name}: {item}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


@contextlib.contextmanager
def _bound(namespace: Namespace, source: str) -> Iterator[tuple[socket.socket, str]]:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    line = namespace.socket(family)
    try:
        line.settimeout(TIMEOUT_S)
        # No TIME_WAIT: tens of thousands of probes may come from one address.
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        line.bind((source, 0))
        host, port = line.getsockname()[:2]
        yield line, f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
    finally:
        line.close()
