# SPDX-License-Identifier: Apache-2.0
"""
Certificates that claim to be somebody: refused at every door, also where the listener itself would let them in.

Policy lets everybody pass here, so whoever is denied is denied for what he says of himself. The listener is weakened:
it takes connections without a certificate, and of any name; only who signed them is verified.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from envoy_backend import banner_backend
from envoy_harness import CLIENT, OTHER
from envoy_tls import TRUST_DOMAIN, UNKNOWN, Guarded, guarded

from ext_authz.xds.setup import Door, Evidence, Mode

HTTP_DOORS = [Door.MODULE, Door.EXT_AUTHZ, Door.EXT_PROC]
# What a certificate authority might be talked into signing; ME is the identity of the client's address.
NAMES = [
    "spiffe://td.test/identity/1",  # the host
    "spiffe://td.test/identity/0",
    "spiffe://td.test/identity/2",
    "spiffe://td.test/identity/8",
    "spiffe://td.test/identity/255",
    "spiffe://td.test/identity/65535",  # nobody has it
    "spiffe://td.test/identity/16777217",  # the host, once the scope is cut off
    "spiffe://td.test/identity/4294967552",  # 256 in 32 bits
    "spiffe://td.test/identity/0ME",
    "spiffe://td.test/identity/+ME",
    "spiffe://td.test/identity/ME/",
    "spiffe://td.test/identity//ME",
    "spiffe://td.test//identity/ME",
    "spiffe://td.test/identity/ME/x",
    "spiffe://td.test/identity/ME?a=b",
    "spiffe://td.test/identity/ME#a",
    "spiffe://td.test/identity/%32%35%36",
    "spiffe://td.test/a/../identity/ME",
    "spiffe://td.test/./identity/ME",
    "spiffe://td.test:443/identity/ME",
    "spiffe://x@td.test/identity/ME",
    "spiffe://TD.test/identity/ME",
    "SPIFFE://td.test/identity/ME",
    "spiffe:/td.test/identity/ME",
    "spiffe://td.test.evil/identity/ME",
    "spiffe://other.test/identity/ME",
    "spiffe://td.testidentity/ME",
    "https://td.test/identity/ME",
    "spiffe://td.test/Identity/ME",
    "spiffe://td.test",
    "spiffe://td.test/",
    "spiffe://td.test/identity",
    "spiffe://td.test/identity/ME,spiffe://td.test/identity/ME",
    " spiffe://td.test/identity/ME",
    "spiffe://td.test/identity/ME ",
    "spiffe://td.test/identity/ME;x",
    "spiffe://td.test/identity/" + "1" * 2000,
    "spiffe://td.test/" + "a" * 4000,
    "spiffe://td.test/ns/default/sa/talker",  # another account
    "spiffe://td.test/ns/other/sa/walker",
    "spiffe://td.test/ns/default/sa/walke",
    "spiffe://td.test/ns/default/sa/walkerx",
    "spiffe://td.test/ns/default/sa/",
    "spiffe://td.test/ns//sa/walker",
    "spiffe://td.test/ns/default/sa/walker/x",
    "spiffe://td.test/sa/walker/ns/default",
    "spiffe://td.test/ns/" + "a" * 64 + "/sa/walker",
    "spiffe://td.test/ns/default/sa/" + "a" * 1000,
]


@pytest.fixture(scope="module", params=HTTP_DOORS)
def stage(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    with (
        tempfile.TemporaryDirectory(prefix="idmesh-") as folder,
        guarded(request.param, Path(folder), weak=True) as started,
    ):
        assert started.ask(started.certificate(started.id_of(CLIENT))) == 200
        yield started


@pytest.fixture(scope="module")
def alone(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    """The same where only the certificate says who connects."""
    with (
        tempfile.TemporaryDirectory(prefix="idmesh-") as folder,
        guarded(Door.MODULE, Path(folder), weak=True, address_ignored=True) as started,
    ):
        assert started.ask(started.certificate(started.id_of(CLIENT)), UNKNOWN) == 200
        yield started


def _refused(stage: Guarded, *certificates: Path | None, **words: Any) -> None:
    before = len(stage.backend.requests)
    assert [stage.ask(each, **words) for each in certificates] == [403] * len(certificates)
    assert len(stage.backend.requests) == before


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:60])
def test_no_other_name_than_the_peers_own_is_believed(stage: Guarded, name: str) -> None:
    _refused(stage, stage.certificate(name.replace("ME", str(stage.numbers[CLIENT]))))


@pytest.mark.parametrize("name", [name for name in NAMES if "talker" not in name], ids=lambda name: name[:60])
def test_no_such_name_makes_an_identity_of_its_own(alone: Guarded, name: str) -> None:
    _refused(alone, alone.certificate(name.replace("ME", str(alone.numbers[CLIENT]))), source=UNKNOWN)


def test_another_identitys_certificate_is_refused(stage: Guarded) -> None:
    _refused(stage, stage.certificate(stage.id_of(OTHER)))
    _refused(stage, stage.certificate(stage.id_of(CLIENT)), source=OTHER)
    _refused(stage, stage.certificate(stage.id_of(CLIENT)), source=UNKNOWN)


def test_two_names_are_refused_even_if_one_is_right(stage: Guarded) -> None:
    mine, theirs = stage.id_of(CLIENT), stage.id_of(OTHER)
    _refused(
        stage,
        stage.certificate(mine, theirs),
        stage.certificate(theirs, mine),
        stage.certificate(mine, mine),
        stage.certificate(mine, "https://example.test/"),
        stage.certificate(mine, f"spiffe://{TRUST_DOMAIN}/ns/default/sa/walker"),
    )


def test_names_of_other_kinds_are_no_spiffe_ids(stage: Guarded) -> None:
    mine = stage.id_of(CLIENT)
    _refused(
        stage,
        stage.pki.leaf(),
        stage.pki.leaf("DNS:client.default"),
        stage.pki.leaf(f"DNS:{mine}"),
        stage.pki.leaf(f"email:{stage.numbers[CLIENT]}@{TRUST_DOMAIN}"),
        stage.pki.leaf("IP:" + CLIENT),
    )


def test_without_a_certificate_nobody_passes_where_one_is_required(stage: Guarded) -> None:
    _refused(stage, None)


def test_headers_are_no_certificates(stage: Guarded) -> None:
    mine = stage.id_of(CLIENT)
    for certificate in (None, stage.certificate(stage.id_of(OTHER))):
        for name, value in (
            ("x-forwarded-client-cert", f"By=x;Hash=1;URI={mine}"),
            ("x-forwarded-client-cert", f'URI={mine};Subject=""'),
            ("idmesh-certificate", f"9999999999;{mine}"),
            ("idmesh-trust-domain", TRUST_DOMAIN),
            ("idmesh-require", "address"),
            ("x-client-cert", mine),
        ):
            _refused(stage, certificate, headers={name: value})


def test_what_a_stranger_signed_or_what_has_ended_gets_no_connection(stage: Guarded) -> None:
    mine = stage.id_of(CLIENT)
    before = len(stage.backend.requests)
    assert stage.ask(stage.certificate(mine, ca="stranger")) == 0
    assert stage.ask(stage.certificate(mine, seconds=-60)) == 0
    assert len(stage.backend.requests) == before


@pytest.mark.parametrize("door", HTTP_DOORS)
def test_a_listener_that_verifies_nobody_is_closed_by_the_generated_filter(door: Door, tmp_path: Path) -> None:
    """ACCEPT_UNTRUSTED: Envoy reports the stranger's certificate like any other; its RBAC filter tells them apart."""

    def untrusting(config: dict[str, Any]) -> None:
        chain = config["staticResources"]["listeners"][0]["filterChains"][0]
        context = chain["transportSocket"]["typedConfig"]["commonTlsContext"]["validationContext"]
        context["trustChainVerification"] = "ACCEPT_UNTRUSTED"

    with guarded(door, tmp_path, change=untrusting) as stage:
        assert stage.ask(stage.certificate(stage.id_of(CLIENT))) == 200
        assert stage.ask(stage.certificate(stage.id_of(CLIENT), ca="stranger")) == 0


def test_a_resumed_session_is_closed_by_the_generated_filter(tmp_path: Path) -> None:
    """Nobody verifies its certificate again: it may have been revoked, or its CA replaced."""

    def resuming(config: dict[str, Any]) -> None:
        chain = config["staticResources"]["listeners"][0]["filterChains"][0]
        chain["transportSocket"]["typedConfig"].pop("disableStatelessSessionResumption")
        chain["transportSocket"]["typedConfig"].pop("disableStatefulSessionResumption")

    def talk(session: ssl.SSLSession | None) -> tuple[bytes, bool, ssl.SSLSession | None]:
        with stage.connect(None, context=context, session=session) as connection:
            connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            return connection.recv(100)[:12], bool(connection.session_reused), connection.session

    with guarded(Door.MODULE, tmp_path, change=resuming) as stage:
        context = stage.pki.context(stage.certificate(stage.id_of(CLIENT)))
        answer, reused, session = talk(None)
        assert (answer, reused) == (b"HTTP/1.1 200", False)
        answer, reused, _ = talk(session)
        assert (answer, reused) == (b"", True)


@pytest.mark.parametrize("door", [Door.MODULE, Door.EXT_AUTHZ])
def test_connections_are_refused_alike(door: Door, tmp_path: Path) -> None:
    with (
        banner_backend() as backend,
        guarded(door, tmp_path, weak=True, mode=Mode.TCP, backend=backend) as stage,
    ):
        mine, theirs = stage.id_of(CLIENT), stage.id_of(OTHER)
        assert stage.read(stage.certificate(mine))
        seen = backend.connections
        for certificate in (
            None,
            stage.certificate(theirs),
            stage.certificate(mine, theirs),
            stage.certificate("spiffe://other.test/identity/256"),
            stage.certificate(f"spiffe://{TRUST_DOMAIN}/identity/1"),
            stage.certificate(f"spiffe://{TRUST_DOMAIN}/ns/default/sa/talker"),
            stage.pki.leaf("DNS:client.default"),
            stage.certificate(mine, ca="stranger"),
            stage.certificate(mine, seconds=-60),
        ):
            assert stage.read(certificate) == b"", certificate
        assert stage.read(stage.certificate(mine), OTHER) == b""
        assert backend.connections == seen


def test_a_door_whose_report_is_missing_denies_everybody(tmp_path: Path) -> None:
    """Who names a trust domain but not what reports the certificate has a closed door, not an open one."""

    def unreported(config: dict[str, Any]) -> None:
        chain = config["staticResources"]["listeners"][0]["filterChains"][0]
        chain["filters"] = [each for each in chain["filters"] if "set_filter_state" not in each["name"]]

    with guarded(Door.MODULE, tmp_path, change=unreported, require=(Evidence.ADDRESS,)) as stage:
        assert stage.ask(stage.certificate(stage.id_of(CLIENT))) == 403
