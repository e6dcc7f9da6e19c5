# SPDX-License-Identifier: Apache-2.0
"""Mutated paths before a real backend: nothing is served that policy denies, whatever the spelling."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from envoy_backend import Backend
from envoy_h2 import H2Client
from envoy_harness import CLIENT, Envoy, Node, policy, running, running_config, setup_for

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door

COUNT = int(os.environ.get("IDMESH_PATHS", "5000"))
SEED = int(os.environ.get("IDMESH_SEED", "1"))
L7 = policy("[{method: GET, path: /public/.*}, {method: GET, path: /exact}]")
_ALLOWED = re.compile(r"/public/.*|/exact")

_SEGMENTS = (
    "public",
    "private",
    "exact",
    "admin",
    "a",
    "PUBLIC",
    "",
    ".",
    "..",
    "...",
    "%2e",
    "%2e%2e",
    ".%2E",
    "%2E%2e",
)
_SEGMENTS += (
    "public;x",
    "..;",
    ";",
    ".;a=b",
    "%2f",
    "%2F..",
    "..%2f",
    "%5c",
    "..%5c",
    "\\",
    "..\\",
    "%252e%252e",
    "%c0%ae",
)
_SEGMENTS += ("%00", "%0a", "%", "%zz", "%2", "é", "~", "%7e", "*", "?", "#", "public%2f..", "public%2fa")
_SEPARATORS = ("/", "/", "/", "/", "//", "///", "%2f", "%2F", "\\", "/./", "/../", ";/")
_TAILS = ("", "", "", "?", "?a=b", "?/../../x", "?%2e", "#f", ";v=1", "/", "/.", "/..", "%20", " ")
_PREFIXES = ("/", "/", "/", "//", "http://ships/", "http://evil/", "https://ships/", "HTTP://ships/", "ships/", "")


_BASES = ("/public/a", "/public/a/b?x=1", "/exact", "/public/", "/private/a", "/admin", "/publicx", "/exact/")


def mutated(random_source: random.Random) -> str:
    """Half of them are a plain path with up to two things written into it, half are made of odd pieces."""
    return _edited(random_source) if random_source.random() < 0.5 else _made(random_source)


def _edited(random_source: random.Random) -> str:
    path = random_source.choice(_BASES)
    for _ in range(random_source.randint(0, 2)):
        at = random_source.randint(0, len(path))
        piece = random_source.choice(
            ("/../", "/./", "//", "%2f", "%2e%2e/", "/%2e/", ";x", "%41", "..", "\\", "/..;/", "%")
        )
        path = path[:at] + piece + path[at:]
    return path


def _made(random_source: random.Random) -> str:
    segments = [random_source.choice(_SEGMENTS) for _ in range(random_source.randint(1, 6))]
    path = random_source.choice(_PREFIXES) + segments[0]
    for segment in segments[1:]:
        path += random_source.choice(_SEPARATORS) + segment
    return path + random_source.choice(_TAILS)


def _exchange(envoy: Envoy, path: str, state: list[socket.socket]) -> None:
    """Send one raw request on a kept connection and read its answer; a broken connection is replaced."""
    if not state:
        state.append(socket.create_connection((envoy.listen.host, envoy.listen.port), 10, source_address=(CLIENT, 0)))
    connection = state[0]
    try:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: ships\r\n\r\n".encode("utf-8", "surrogateescape"))
        closes = _read_answer(connection)
    except OSError:
        closes = True
    if closes:
        # Reset, so that tens of thousands of closed connections do not hold the client's ports.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        state.clear()


def _read_answer(connection: socket.socket) -> bool:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return True
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head, re.I)
    left = int(found.group(1)) - len(body) if found else 0
    while left > 0:
        left -= len(connection.recv(left) or b" " * left)
    return b"connection: close" in head.lower()


def _play(envoy: Envoy, seed: int, count: int) -> None:
    source, state = random.Random(seed), []  # type: ignore[var-annotated]
    for _ in range(count):
        _exchange(envoy, mutated(source), state)
    for connection in state:
        connection.close()


def _resolved(path: str) -> str:
    kept: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            kept[-1:] = []
        elif segment not in ("", "."):
            kept.append(segment)
    return "/" + "/".join(kept) + ("/" if path.endswith(("/", "/.", "/..")) and kept else "")


def _check(backend: Backend) -> None:
    """What the backend got is what policy matched, query aside; no reading of it lies outside."""
    for seen in backend.requests:
        path = seen.path.partition("?")[0]
        assert _ALLOWED.fullmatch(seen.path) or _ALLOWED.fullmatch(path), seen.path
        assert _ALLOWED.fullmatch(_resolved(path)), seen.path
        assert "//" not in path, seen.path
        assert not re.search(r"%2f|%5c|%2e", path, re.IGNORECASE), seen.path


def test_no_spelling_of_a_denied_path_is_served(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(L7)
    workers = 4
    with (
        running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started,
        ThreadPoolExecutor(workers) as pool,
    ):
        list(pool.map(lambda i: _play(started, SEED * 1000 + i, COUNT // workers), range(workers)))
        assert started.stat("idmesh.error") == 0
        judged = started.stat("idmesh.allowed") + started.stat("idmesh.denied")
        assert started.stat("idmesh.allowed") == len(backend.requests)
    assert judged > COUNT // 8  # the others Envoy refused or redirected before any filter
    assert len(backend.requests) > COUNT // 100
    _check(backend)


def test_without_envoys_normalization_only_canonical_paths_are_served(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    """Somebody's own connection manager may leave paths as they come: then the module denies what is not canonical."""
    node.publish(L7)
    config = json.loads(render(setup_for(Door.MODULE, backend.address, state=node.state)))
    manager = config["staticResources"]["listeners"][0]["filterChains"][0]["filters"][0]["typedConfig"]
    for key in ("normalizePath", "mergeSlashes", "pathWithEscapedSlashesAction"):
        del manager[key]
    path = tmp_path / "plain.json"
    path.write_text(json.dumps(config))
    with running_config(path, tmp_path, envoy) as started:
        _play(started, SEED, COUNT // 4)
        assert started.stat("idmesh.allowed") == len(backend.requests)
    assert backend.requests
    _check(backend)


def test_http2_paths_are_judged_the_same(node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    node.publish(L7)
    source = random.Random(SEED)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        for _ in range(max(COUNT // 100, 20)):
            with contextlib.suppress(OSError), H2Client(CLIENT, started.listen) as client:
                # The codec ends the whole connection over a path without its slash, or with a byte outside ASCII.
                paths = [
                    path
                    for path in (mutated(source) for _ in range(10))
                    if path[:1] == "/" and path.isascii() and " " not in path
                ]
                client.send(paths)
        # A malformed header ends the connection, and what was allowed on it may not get there any more.
        assert started.stat("idmesh.allowed") >= len(backend.requests)
    assert backend.requests
    _check(backend)
