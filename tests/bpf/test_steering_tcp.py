# SPDX-License-Identifier: Apache-2.0
"""Connections that are no requests: TLS passed through by its server's name, and what nobody can judge closed."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.envoy_binary import find_envoy
from ext_authz.play.network import End
from tests.bpf.steered import Steered, policy

pytestmark = pytest.mark.needs_envoy

PAIRS = [("10.1.0.1", "10.1.0.2"), ("fd00:1::1", "fd00:1::2")]
both_versions = pytest.mark.parametrize("addresses", PAIRS, ids=["ipv4", "ipv6"])
NAMED = """
egress:
- toEndpoints: [{matchLabels: {app: server}}]
  toPorts:
  - ports: [{port: '8443', protocol: TCP}]
    serverNames: [good.test]
"""
REQUESTS = """
ingress:
- fromEndpoints: [{matchLabels: {app: client}}]
  toPorts:
  - ports: [{port: '8443', protocol: TCP}]
    rules: {http: [{path: /a}]}
"""


@pytest.fixture
def site(folder: Path, cgroup: Path) -> Iterator[Steered]:
    with Steered(folder, cgroup) as made:
        yield made


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key in one file."""
    made = tmp_path_factory.mktemp("tls") / "both.pem"
    key, cert = made.with_name("key"), made.with_name("cert")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=good.test", "-days", "2"]
    subprocess.run([*words, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    made.write_text(key.read_text() + cert.read_text())
    return made


@contextlib.contextmanager
def tls_server(end: End, address: str, certificate: Path) -> Iterator[list[str]]:
    """Greets each client by the server's name it asked for; the addresses of those that connected."""
    seen: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked: list[str] = [""]
    context.sni_callback = lambda _line, name, _context: asked.__setitem__(0, name or "")
    listener = end.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.bind((address, 8443))
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                line, where = listener.accept()
                seen.append(where[0])
                line.settimeout(5)
                with contextlib.suppress(OSError), context.wrap_socket(line, server_side=True) as safe:
                    safe.sendall(f"hello {asked[0]}".encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def greeting(end: End, address: str, name: str | None) -> tuple[str, bytes]:
    """What a client that asks for the name reads, and the certificate it is shown; nothing if it is closed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with end.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as line:
        line.settimeout(5)
        try:
            line.connect((address, 8443))
            with context.wrap_socket(line, server_hostname=name) as safe:
                return safe.recv(100).decode(), safe.getpeercert(binary_form=True) or b""
        except OSError:
            return "", b""


@both_versions
def test_tls_passes_by_its_servers_name_and_stays_the_clients(
    addresses: tuple[str, str], site: Steered, certificate: Path
) -> None:
    client, server = site.add("client", addresses[0]), site.add("server", addresses[1])
    site.apply(policy(NAMED, "out", "client"))
    site.start(find_envoy())
    with tls_server(server, addresses[1], certificate) as seen:
        said, shown = greeting(client, addresses[1], "good.test")
        assert said == "hello good.test"
        assert shown == ssl.PEM_cert_to_DER_cert(certificate.with_name("cert").read_text())
        assert greeting(client, addresses[1], "bad.test") == ("", b"")
        assert greeting(client, addresses[1], None) == ("", b"")
        assert seen == [addresses[0]]
    assert (site.stat("idmesh.allowed"), site.stat("idmesh.denied")) == (1, 2)


def test_what_is_no_tls_has_no_name_to_pass_by(site: Steered, certificate: Path) -> None:
    client, server = site.add("client", "10.1.0.1"), site.add("server", "10.1.0.2")
    site.apply(policy(NAMED, "out", "client"))
    site.start(find_envoy())
    with tls_server(server, "10.1.0.2", certificate) as seen, client.socket(socket.AF_INET) as line:
        line.settimeout(5)
        line.connect(("10.1.0.2", 8443))
        with contextlib.suppress(ConnectionError):
            line.sendall(b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n")
            assert line.recv(100) == b""
        assert seen == []


def test_requests_inside_of_tls_cannot_be_judged(site: Steered, certificate: Path) -> None:
    client, server = site.add("client", "10.1.0.1"), site.add("server", "10.1.0.2")
    site.apply(policy(REQUESTS))
    site.start(find_envoy())
    with tls_server(server, "10.1.0.2", certificate) as seen:
        assert greeting(client, "10.1.0.2", "good.test") == ("", b"")
        assert seen == []
    assert site.stat("idmesh.denied") == 1


def test_each_client_of_a_tls_server_has_its_own_connections(site: Steered, certificate: Path) -> None:
    first, second = site.add("client", "10.1.0.1"), site.add("other", "10.1.0.3")
    server = site.add("server", "10.1.0.2")
    site.apply(policy(NAMED, "out", "client") + policy(NAMED, "out2", "other"))
    site.start(find_envoy(), concurrency=1)
    with tls_server(server, "10.1.0.2", certificate) as seen:
        for end in (first, second, first, second):
            assert greeting(end, "10.1.0.2", "good.test")[0] == "hello good.test"
        assert seen == ["10.1.0.1", "10.1.0.3"] * 2
