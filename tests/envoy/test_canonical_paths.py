# SPDX-License-Identifier: Apache-2.0
"""The engine's canonical path against what real Envoys make of the same bytes."""

from __future__ import annotations

import json
import os
import random
import re
import socket
from pathlib import Path

import pytest
from envoy_harness import Envoy, envoy_of, running_config
from ext_authz.engine._engine import ffi, lib

COUNT = int(os.environ.get("IDMESH_PATHS", "2000"))
SEED = int(os.environ.get("IDMESH_SEED", "1"))
PIECES = (
    "/",
    "/",
    "/",
    "//",
    ".",
    "..",
    "%2e",
    "%2E",
    "%2f",
    "%5C",
    "\\",
    "a",
    "b",
    ";",
    ";x=1",
    "%41",
    "%7e",
    "%25",
    "%3b",
)
PIECES += (
    "{",
    '"',
    "[",
    "~",
    "%zz",
    "%",
    "?",
    "?q=/../",
    "%20",
    "%C3%A9",
    "%2",
    "*",
    "|",
    "..;",
    "%2e%2e;",
    "^",
    "%00",
    "#",
)
# Where the engine is stricter, on purpose: a broken escape, and a dot segment with parameters.
STRICTER = re.compile(r"%(?![0-9a-fA-F]{2})|(?:/|\\|%2[fF]|%5[cC])(?:\.|%2[eE]){1,2};")


def canonical(path: bytes) -> bytes | None:
    out, size = ffi.new("char[]", 3 * len(path)), ffi.new("size_t *")
    answer = lib.idm_path_canonicalize({"ptr": ffi.from_buffer(path), "size": len(path)}, out, size)
    return None if answer < 0 else bytes(ffi.buffer(out, size[0]))


def config() -> dict[str, object]:
    """An Envoy that answers every request with the path it made of it."""
    types = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "paths",
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "response_headers_to_add": [{"header": {"key": "x-path", "value": "%REQ(:PATH)%"}}],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    return {
        "admin": {"address": address},
        "static_resources": {"listeners": [{"name": "paths", "address": address, "filter_chains": [chain]}]},
    }


class Asker:
    """One keep-alive connection; Envoy closes it where it refuses a request."""

    def __init__(self, envoy: Envoy) -> None:
        self._to = (envoy.listen.host, envoy.listen.port)
        self._socket: socket.socket | None = None

    def ask(self, path: bytes) -> bytes | None:
        """What Envoy made of the path, or None if it refused."""
        if self._socket is None:
            self._socket = socket.create_connection(self._to, timeout=10)
        self._socket.sendall(b"GET " + path + b" HTTP/1.1\r\nhost: a\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            data = self._socket.recv(65536)
            if not data:
                break
            head += data
        if not head.startswith(b"HTTP/1.1 200"):
            self._socket.close()
            self._socket = None
            return None
        return next(line[8:] for line in head.split(b"\r\n") if line.startswith(b"x-path: "))


@pytest.mark.parametrize("version", ["1.38.3", "1.39.3", "1.40.0"])
def test_the_engine_reads_a_path_as_envoy_does_or_refuses_it(version: str, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps(config()))
    with running_config(file, tmp_path, envoy_of(version), concurrency=1) as envoy:
        asker = Asker(envoy)
        agreed = 0
        for _ in range(COUNT):
            path = "/" + "".join(chance.choices(PIECES, k=chance.randint(0, 9)))
            ours, theirs = canonical(path.encode()), asker.ask(path.encode())
            where = f"{path} (IDMESH_SEED={SEED})"
            if ours is not None:
                assert theirs == ours, where
                agreed += 1
            elif theirs is not None:
                assert STRICTER.search(path), where
            # What a door hands over as it came from Envoy is canonical to us, or denied; never read anew.
            assert theirs is None or canonical(theirs) in (None, theirs), where
        assert agreed > COUNT // 5
