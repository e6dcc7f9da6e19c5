# SPDX-License-Identifier: Apache-2.0
"""Whom the doctor blames when a connection is not steered: what mends it, and nobody else."""

from __future__ import annotations

from typing import Any

import pytest

# The import below needs it; CI fails in the tests that say so by their marker.
pytest.importorskip("ext_authz.datapath._datapath", reason="the loader of the data path is not built")

from ext_authz.doctor import steered


class FakeProbe:
    """Breaks while all of these have these values."""

    def __init__(self, **breaking: str) -> None:
        self.breaking = breaking
        self.values: dict[str, str] = {}

    def set(self, name: str, value: str) -> None:
        self.values[name.rpartition("/")[2]] = value

    def steers(self) -> str:
        broken = self.breaking and all(self.values.get(name) == value for name, value in self.breaking.items())
        return "it never arrived" if broken else ""


def blamed(monkeypatch: pytest.MonkeyPatch, probe: FakeProbe, **host: str) -> list[str]:
    monkeypatch.setattr(steered, "host_value", lambda name: host.get(name.rpartition("/")[2], ""))
    made: Any = probe
    return [text.partition("=")[0] for text in steered.culprits(made, ["eth9"])]


def test_a_host_that_works_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blamed(monkeypatch, FakeProbe(), tcp_fwmark_accept="1") == []


def test_what_mends_it_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = FakeProbe(tcp_fwmark_accept="1")
    assert blamed(monkeypatch, probe, tcp_fwmark_accept="1", route_localnet="1") == ["net.ipv4.tcp_fwmark_accept"]


def test_each_of_two_that_break_it_together_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = FakeProbe(tcp_fwmark_accept="1", route_localnet="1")
    found = blamed(monkeypatch, probe, tcp_fwmark_accept="1", route_localnet="1", ip_early_demux="0")
    assert found == ["net.ipv4.tcp_fwmark_accept", "net.ipv4.conf.all.route_localnet"]


def test_an_interfaces_own_value_is_named_with_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    found = blamed(monkeypatch, FakeProbe(src_valid_mark="1"), src_valid_mark="1")
    assert "net.ipv4.conf.eth9.src_valid_mark" in found
