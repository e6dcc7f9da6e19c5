# SPDX-License-Identifier: Apache-2.0
"""
The committed examples are what the generator writes, Envoy accepts them, and each serves traffic: what policy allows
passes, what it denies does not.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import grpc
import pytest
from envoy_harness import CLIENT, MODULE, OTHER, ROOT, SERVER, VERSIONS, Envoy, ask, envoy_of, wait_until
from envoy_places import EXAMPLES, PROXY, Place

from ext_authz.doctor.config.judge import judge
from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.bootstrap import render

# `import envoy` would find Envoy's own messages.
_SPEC = spec_from_file_location("idmesh_envoy_generate", ROOT / "envoy/generate.py")
assert _SPEC
assert _SPEC.loader
generate = module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate)

NAMES = sorted(generate.examples())


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_example_is_what_the_generator_writes(name: str) -> None:
    assert (EXAMPLES / f"{name}.json").read_text() == render(generate.examples()[name])


def test_there_is_no_example_but_those() -> None:
    assert {path.stem for path in EXAMPLES.iterdir()} == set(NAMES)


def kind_of(name: str) -> str:
    return next((kind for kind in ("grpc", "tcp") if kind in name.split("-")), "http")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_each_envoy_accepts_an_example(name: str, version: str, tmp_path: Path, places: Callable[[str], Place]) -> None:
    config, envoy = tmp_path / "envoy.json", envoy_of(version)
    config.write_text(json.dumps(places(kind_of(name)).placed(name)))
    command = [envoy.path, "--mode", "validate", "-c", config]
    said = subprocess.run(command, env=envoy.environment(MODULE), capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr[-2000:]


# ---- traffic ----


def requests(envoy: Envoy, _here: Place) -> None:
    allowed = ask(CLIENT, envoy, "/public/x")
    assert (allowed.status, allowed.body) == (200, b"backend")
    denied = ask(CLIENT, envoy, "/private")
    assert (denied.status, denied.body) == (403, b"Access denied\r\n")
    assert len(denied.headers["x-idmesh-decision-id"]) == 32
    assert ask(OTHER, envoy, "/public/x").status == 403


def forwarded(envoy: Envoy, here: Place) -> None:
    """X-Forwarded-For of the proxy before Envoy is logged and passed on; it says nothing about who asks."""
    requests(envoy, here)
    claims = {"X-Forwarded-For": CLIENT}
    assert ask(OTHER, envoy, "/public/x", headers=claims).status == 403
    assert ask(CLIENT, envoy, "/public/x", headers={"X-Forwarded-For": OTHER}).status == 200


def proxied(envoy: Envoy, _here: Place) -> None:
    """A PROXY header counts from the listed network, and ends everybody else's connection."""
    assert _through_proxy(envoy, PROXY, CLIENT).startswith(b"HTTP/1.1 200")
    assert _through_proxy(envoy, PROXY, OTHER).startswith(b"HTTP/1.1 403")
    assert _through_proxy(envoy, OTHER, CLIENT) == b""


def _through_proxy(envoy: Envoy, source: str, claims: str) -> bytes:
    head = f"PROXY TCP4 {claims} {SERVER} 4000 {envoy.listen.port}\r\n"
    request = f"{head}GET /public/x HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n"
    address = (envoy.listen.host, envoy.listen.port)
    with socket.create_connection(address, 10, source_address=(source, 0)) as connection:
        try:
            connection.sendall(request.encode())
            return connection.recv(4096)
        except ConnectionError:
            return b""


def observed(envoy: Envoy, here: Place) -> None:
    """Everything passes, and the service has seen what it would have denied."""
    before = _denied(here)
    assert ask(CLIENT, envoy, "/public/x").status == 200
    assert ask(OTHER, envoy, "/public/x").status == 200
    wait_until(lambda: _denied(here) > before, "the service to have judged it", 20)


def _denied(here: Place) -> int:
    pages = [json.loads(path.read_text()) for path in (here.node.state / "readers").glob("*.json")]
    return sum(page.get("counts", {}).get("denied", 0) for page in pages)


def calls(envoy: Envoy, _here: Place) -> None:
    """gRPC calls of whoever connects from 127.0.0.1."""
    with grpc.insecure_channel(envoy.listen.text, options=(("grpc.enable_http_proxy", 0),)) as channel:
        assert channel.unary_unary("/pkg.Service/Call")(b"x", timeout=10) == b"x"
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/pkg.Service/Other")(b"x", timeout=10)
        assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED


def connections(envoy: Envoy, here: Place) -> None:
    """The server speaks first, and a denied client reads nothing of it."""
    assert _first_words(envoy, CLIENT, b"") == b"220 hello\r\n"
    _refused(envoy, here, b"")


def connections_after_first_byte(envoy: Envoy, here: Place) -> None:
    assert _first_words(envoy, CLIENT, b"x").startswith(b"220 hello\r\n")
    _refused(envoy, here, b"x")


def named_connections(envoy: Envoy, here: Place) -> None:
    """The client's first bytes are read for a server name before anything is judged."""
    assert _first_words(envoy, CLIENT, _client_hello()).startswith(b"220 hello\r\n")
    _refused(envoy, here, _client_hello())


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="server.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def _refused(envoy: Envoy, here: Place, first: bytes) -> None:
    before = here.backend.connections
    assert _first_words(envoy, OTHER, first) == b""
    assert here.backend.connections == before


def _first_words(envoy: Envoy, source: str, first: bytes) -> bytes:
    try:
        address = (envoy.listen.host, envoy.listen.port)
        with socket.create_connection(address, 10, source_address=(source, 0)) as connection:
            connection.sendall(first)
            return connection.recv(4096)
    except ConnectionError:
        return b""


def certified_requests(envoy: Envoy, here: Place) -> None:
    assert _certified(envoy, here, CLIENT, "client", "/public/x") == 200
    assert _certified(envoy, here, CLIENT, "client", "/private") == 403
    assert _certified(envoy, here, OTHER, "other", "/public/x") == 403
    # The address and the certificate must say the same.
    assert _certified(envoy, here, CLIENT, "other", "/public/x") == 403
    assert _certified(envoy, here, OTHER, "client", "/public/x") == 403
    assert _certified(envoy, here, CLIENT, "", "/public/x") == 0


def _context(here: Place, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(here.folder / "ca.crt")
    if name:
        context.load_cert_chain(here.folder / f"{name}.crt", here.folder / f"{name}.key")
    return context


def _certified(envoy: Envoy, here: Place, source: str, name: str, path: str) -> int:
    """Status of a request with that certificate; 0: the connection failed."""
    connection = http.client.HTTPSConnection(
        envoy.listen.host, envoy.listen.port, timeout=10, source_address=(source, 0), context=_context(here, name)
    )
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def certified_connections(envoy: Envoy, here: Place) -> None:
    assert _certified_words(envoy, here, CLIENT, "client") == b"220 hello\r\n"
    before = here.backend.connections
    for source, name in ((OTHER, "other"), (CLIENT, "other"), (OTHER, "client"), (CLIENT, "")):
        assert _certified_words(envoy, here, source, name) == b""
    assert here.backend.connections == before


def _certified_words(envoy: Envoy, here: Place, source: str, name: str) -> bytes:
    address = (envoy.listen.host, envoy.listen.port)
    try:
        with (
            socket.create_connection(address, 10, source_address=(source, 0)) as plain,
            _context(here, name).wrap_socket(plain) as connection,
        ):
            return connection.recv(4096)
    except OSError:
        return b""


Traffic = Callable[[Envoy, Place], None]
# The rest is `requests`, or for their kinds `calls` and `connections`.
TRAFFIC: dict[str, Traffic] = {
    "module-http-forwarded-for": forwarded,
    "ext-proc-http-forwarded-for": forwarded,
    "module-http-proxy-protocol": proxied,
    "ext-authz-http-proxy-protocol": proxied,
    "ext-proc-http-observe": observed,
    "ext-authz-tcp": connections_after_first_byte,
    "module-tcp-server-name": named_connections,
    "module-tcp-mtls": certified_connections,
    "module-http-mtls": certified_requests,
    "ext-authz-http-mtls": certified_requests,
    "ext-proc-http-mtls": certified_requests,
}
_BY_KIND: dict[str, Traffic] = {"http": requests, "grpc": calls, "tcp": connections}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_serves_what_policy_allows(
    name: str, envoy: EnvoyBinary, tmp_path: Path, places: Callable[[str], Place]
) -> None:
    here = places(kind_of(name))
    with here.running(name, tmp_path, envoy) as started:
        TRAFFIC.get(name, _BY_KIND[kind_of(name)])(started, here)
        # Doctor has nothing against what Envoy says is in force, either.
        assert [item for item in judge(started.admin_get("/config_dump").encode()) if item.severity == "error"] == []
