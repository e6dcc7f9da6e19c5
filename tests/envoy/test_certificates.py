# SPDX-License-Identifier: Apache-2.0
"""A client's certificate says who it is: at every door, with real certificates, under the generated configuration."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from envoy_backend import banner_backend, http_backend
from envoy_harness import CLIENT, NEWEST, OTHER, SERVER, VERSIONS, policy, setup_for, wait_until
from envoy_tls import ANYBODY, TRUST_DOMAIN, UNKNOWN, Guarded, guarded

from ext_authz.cli import main
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door, Evidence, Mode, SetupError, Tls, parse_target

CLIENT_ONLY = policy("[{path: /.*}]")
AUTHENTICATED = ANYBODY.replace("[{fromEntities: [all]}]", "[{fromEntities: [all], authentication: {mode: required}}]")
HTTP_DOORS = [
    *((Door.MODULE, version) for version in VERSIONS),
    (Door.EXT_AUTHZ, "1.38.3"),
    (Door.EXT_AUTHZ, NEWEST),
    (Door.EXT_PROC, "1.38.3"),
    (Door.EXT_PROC, NEWEST),
]


@pytest.fixture(scope="module", params=HTTP_DOORS, ids=lambda param: f"{param[0]}-{param[1]}")
def stage(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    door, version = request.param
    with (
        tempfile.TemporaryDirectory(prefix="idmesh-") as folder,
        guarded(door, Path(folder), version=version, policies=CLIENT_ONLY) as started,
    ):
        yield started


def test_a_certificate_that_agrees_with_the_address_passes(stage: Guarded) -> None:
    assert stage.ask(stage.certificate(stage.id_of(CLIENT))) == 200


def test_an_account_whose_labels_the_identity_has_passes(stage: Guarded) -> None:
    assert stage.ask(stage.certificate(f"spiffe://{TRUST_DOMAIN}/ns/default/sa/walker")) == 200


def test_a_proven_identity_is_judged_by_policy_like_any_other(stage: Guarded) -> None:
    assert stage.ask(stage.certificate(stage.id_of(OTHER)), OTHER) == 403


def test_a_certificate_of_another_identity_than_the_addresss_is_denied(stage: Guarded) -> None:
    assert stage.ask(stage.certificate(stage.id_of(OTHER))) == 403
    assert stage.ask(stage.certificate(stage.id_of(CLIENT)), OTHER) == 403
    assert stage.ask(stage.certificate(f"spiffe://{TRUST_DOMAIN}/ns/default/sa/talker")) == 403


def test_an_address_that_nobody_knows_contradicts_a_certificate(stage: Guarded) -> None:
    assert stage.ask(stage.certificate(stage.id_of(CLIENT)), UNKNOWN) == 403


def test_only_verified_certificates_of_the_trust_domain_end_the_handshake(stage: Guarded) -> None:
    mine = stage.id_of(CLIENT)
    refused = [
        None,
        stage.certificate(mine, ca="stranger"),
        stage.certificate(mine, seconds=-60),
        stage.certificate("spiffe://other.test/identity/256"),
        stage.pki.leaf("DNS:client.default"),
    ]
    before = len(stage.backend.requests)
    assert [stage.ask(each) for each in refused] == [0] * len(refused)
    assert len(stage.backend.requests) == before


def test_one_connection_serves_many_requests(stage: Guarded) -> None:
    connection = http.client.HTTPConnection("server")
    connection.sock = stage.connect(stage.certificate(stage.id_of(CLIENT)))
    for _ in range(20):
        connection.request("GET", "/a")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
    connection.close()


def test_sessions_are_not_resumed(stage: Guarded) -> None:
    context = stage.pki.context(stage.certificate(stage.id_of(CLIENT)))
    session: ssl.SSLSession | None = None
    for _ in range(2):
        with stage.connect(None, context=context, session=session) as connection:
            connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            assert not connection.session_reused
            session = connection.session


# ---- what the engine makes of it ----


@pytest.mark.parametrize("door", [Door.MODULE, Door.EXT_AUTHZ, Door.EXT_PROC])
def test_a_certificate_is_the_authentication_that_policy_demands(door: Door, tmp_path: Path) -> None:
    """Without one the same address is denied, where the configuration does not require it already."""
    with guarded(door, tmp_path, policies=AUTHENTICATED, weak=True, require=()) as stage:
        assert stage.ask(stage.certificate(stage.id_of(CLIENT))) == 200
        assert stage.ask(None) == 403


@pytest.mark.parametrize("door", [Door.MODULE, Door.EXT_AUTHZ, Door.EXT_PROC])
def test_where_the_address_is_ignored_the_certificate_alone_says_who_connects(door: Door, tmp_path: Path) -> None:
    with guarded(door, tmp_path, policies=CLIENT_ONLY, address_ignored=True) as stage:
        mine, walker = stage.id_of(CLIENT), f"spiffe://{TRUST_DOMAIN}/ns/default/sa/walker"
        for source in (CLIENT, OTHER, UNKNOWN):
            assert stage.ask(stage.certificate(mine), source) == 200
            assert stage.ask(stage.certificate(walker), source) == 200
            assert stage.ask(stage.certificate(stage.id_of(OTHER)), source) == 403
        # Two identities have this account: nobody knows which of them it is.
        assert stage.ask(stage.certificate(f"spiffe://{TRUST_DOMAIN}/ns/default/sa/talker")) == 403


@pytest.mark.parametrize("version", ["1.38.3", NEWEST])
def test_the_second_point_judges_by_the_same_certificate(version: str, tmp_path: Path) -> None:
    with (
        http_backend("one", SERVER) as backend,
        guarded(
            Door.MODULE,
            tmp_path,
            version=version,
            policies=policy("", port=backend.address.port),
            backend=backend,
            destination=backend.address.text,
            listen=parse_target("127.1.0.1:0"),
            second_point=True,
            address_ignored=True,
        ) as stage,
    ):
        assert stage.ask(stage.certificate(stage.id_of(CLIENT)), UNKNOWN) == 200
        assert stage.ask(stage.certificate(stage.id_of(OTHER)), CLIENT) == 403
        assert stage.envoy.stat("cluster.upstream.idmesh.allowed") == 1


# ---- connections ----


@contextlib.contextmanager
def _banners(door: Door, folder: Path, **wanted: object) -> Iterator[Guarded]:
    with banner_backend() as backend:
        one = policy("", port=8080)
        with guarded(door, folder, policies=one, mode=Mode.TCP, backend=backend, **wanted) as stage:  # type: ignore[arg-type]
            yield stage


@pytest.mark.parametrize(("door", "version"), [*((Door.MODULE, each) for each in VERSIONS), (Door.EXT_AUTHZ, NEWEST)])
def test_connections_are_judged_by_certificates_too(door: Door, version: str, tmp_path: Path) -> None:
    with _banners(door, tmp_path, version=version) as stage:
        mine = stage.certificate(stage.id_of(CLIENT))
        assert stage.read(mine).startswith(b"220 hello\r\n")
        seen = stage.backend.connections
        for certificate, source in (
            (stage.certificate(stage.id_of(OTHER)), CLIENT),
            (stage.certificate(stage.id_of(OTHER)), OTHER),
            (mine, OTHER),
            (mine, UNKNOWN),
            (None, CLIENT),
        ):
            assert stage.read(certificate, source) == b""
        assert stage.backend.connections == seen


def test_a_server_that_speaks_first_is_heard_through_the_module(tmp_path: Path) -> None:
    with _banners(Door.MODULE, tmp_path) as stage, stage.connect(stage.certificate(stage.id_of(CLIENT))) as connection:
        assert connection.recv(100) == b"220 hello\r\n"


def test_a_connection_ends_with_its_certificate(tmp_path: Path) -> None:
    with _banners(Door.MODULE, tmp_path) as stage:
        short = stage.certificate(stage.id_of(CLIENT), seconds=4)
        with stage.connect(short) as connection, contextlib.suppress(ConnectionError, ssl.SSLError):
            assert connection.recv(100) == b"220 hello\r\n"
            connection.settimeout(20)
            assert connection.recv(100) == b""
        assert stage.read(stage.certificate(stage.id_of(CLIENT)))[:11] == b"220 hello\r\n"


def test_requests_of_an_open_connection_end_with_its_certificate(tmp_path: Path) -> None:
    with guarded(Door.MODULE, tmp_path) as stage:
        short = stage.certificate(stage.id_of(CLIENT), seconds=5)
        connection = http.client.HTTPConnection("server")
        connection.sock = stage.connect(short)

        def status() -> int:
            connection.request("GET", "/a")
            answer = connection.getresponse()
            answer.read()
            return answer.status

        assert status() == 200
        wait_until(lambda: status() == 403, "the certificate's end", 20)
        connection.close()


def test_an_upgraded_stream_ends_with_its_certificate(tmp_path: Path) -> None:
    upgrade = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    with guarded(Door.MODULE, tmp_path) as stage:
        short = stage.certificate(stage.id_of(CLIENT), seconds=5)
        with stage.connect(short) as connection, contextlib.suppress(ConnectionError, ssl.SSLError):
            connection.sendall(upgrade)
            assert connection.recv(1000).startswith(b"HTTP/1.1 101")
            connection.settimeout(20)
            assert connection.recv(100) == b""


# ---- what is generated ----


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trust-domain", TRUST_DOMAIN], "a trust domain needs TLS"),
        (["--trust-domain", TRUST_DOMAIN, "--tls-cert", "a", "--tls-key", "b"], "a trust domain needs TLS"),
        (["--tls-cert", "a"], "belong together"),
        (["--tls-ca", "a"], "--tls-ca needs"),
        (["--tls-cert", "a", "--tls-key", "b", "--tls-ca", "c"], "needs their trust domain"),
        (["--require", "certificate"], "only with a trust domain"),
        (["--ignore-address"], "needs a trust domain"),
    ],
)
def test_half_a_wish_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envoy", "--listen", "127.0.0.1:1", "--upstream", "127.0.0.1:2", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "wanted",
    [
        {"trust_domain": "TD.test"},
        {"address_ignored": True, "require": (Evidence.ADDRESS,)},
        {"door": Door.NONE},
    ],
)
def test_a_setup_that_contradicts_itself_is_refused(wanted: dict[str, Any]) -> None:
    tls = Tls(Path("/cert"), Path("/key"), Path("/ca"))
    fields: dict[str, Any] = {
        "door": Door.MODULE,
        "tls": tls,
        "trust_domain": TRUST_DOMAIN,
        "state": Path("/s"),
        **wanted,
    }
    with pytest.raises(SetupError):
        setup_for(upstream=parse_target("127.0.0.1:1"), **(fields | wanted))


def test_tls_alone_asks_for_no_certificates() -> None:
    setup = setup_for(Door.NONE, parse_target("127.0.0.1:1"), tls=Tls(Path("/cert"), Path("/key")))
    chain = json.loads(render(setup))["staticResources"]["listeners"][0]["filterChains"][0]
    context = chain["transportSocket"]["typedConfig"]
    assert "validationContext" not in context["commonTlsContext"]
    assert "requireClientCertificate" not in context
    assert [each["name"] for each in chain["filters"]] == ["envoy.filters.network.http_connection_manager"]
