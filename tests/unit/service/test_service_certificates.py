# SPDX-License-Identifier: Apache-2.0
"""Certificates at the services' door: what the filter's words make of them."""

from __future__ import annotations

import time

import pytest
from checks import CLIENT, STRANGER, allowed, ask, checker, facts, request, snapshot

from ext_authz.engine import Engine
from ext_authz.service.checker import Checker

TD = "td.test"
LATER, BEFORE = int(time.time()) + 3600, int(time.time()) - 1


@pytest.fixture(scope="module")
def door() -> Checker:
    return checker()


def client_id() -> str:
    return f"spiffe://{TD}/identity/{Engine.open(snapshot()).resolve(CLIENT)[0]}"


def test_a_certificate_that_agrees_with_the_address_passes(door: Checker) -> None:
    words = {"trust_domain": TD, "require": "certificate,address", "certificate": f"{LATER};{client_id()}"}
    assert allowed(ask(door, request(), **words))


@pytest.mark.parametrize(
    "report",
    [
        "",  # not filled in
        "-",
        ";spiffe://td.test/identity/256",
        "LATER;-",
        "LATER;spiffe://td.test/identity/99999",
        "LATER;spiffe://other.test/identity/256",
        "now;@",
        "-;@",
        "LATER;@,@",
        "LATER;@,spiffe://td.test/identity/257",
        "LATER;@/",
        "-LATER;@",
        "BEFORE;@",  # has ended
    ],
)
def test_a_certificate_that_proves_nothing_is_denied_172(door: Checker, report: str) -> None:
    # Names of tests are the same in every process that collects them.
    for word, meant in (("@", client_id()), ("LATER", str(LATER)), ("BEFORE", str(BEFORE))):
        report = report.replace(word, meant)
    response = ask(door, request(), trust_domain=TD, certificate=report)
    assert not allowed(response)
    assert facts(response)["drop"] == "172"


def test_without_a_report_nothing_passes_a_door_that_reads_certificates(door: Checker) -> None:
    assert facts(ask(door, request(), trust_domain=TD))["drop"] == "172"


def test_a_certificate_left_out_counts_as_missing_only_where_it_is_required(door: Checker) -> None:
    assert allowed(ask(door, request(), trust_domain=TD, certificate="-;-"))
    assert not allowed(ask(door, request(), trust_domain=TD, certificate="-;-", require="certificate"))


def test_without_a_trust_domain_nobody_looks_at_certificates(door: Checker) -> None:
    assert allowed(ask(door, request(), certificate=f"{LATER};spiffe://td.test/identity/99999"))


def test_an_ignored_address_leaves_it_to_the_certificate(door: Checker) -> None:
    words = {"trust_domain": TD, "address": "ignored"}
    for source in (CLIENT, STRANGER):
        assert allowed(ask(door, request(source=source), certificate=f"{LATER};{client_id()}", **words))
        assert not allowed(ask(door, request(source=source), certificate="-;-", **words))


@pytest.mark.parametrize(
    "words",
    [
        {"require": "certificate"},
        {"address": "ignored"},
        {"address": "maybe"},
        {"trust_domain": TD, "address": "ignored", "require": "address"},
        {"trust_domain": "TD"},
        {"trust_domain": "a/b"},
    ],
)
def test_words_that_contradict_each_other_are_refused(door: Checker, words: dict[str, str]) -> None:
    with pytest.raises((KeyError, ValueError)):
        ask(door, request(), **words)
