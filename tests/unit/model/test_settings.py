# SPDX-License-Identifier: Apache-2.0
"""Settings: every key by name, files beneath pairs, nothing unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from ext_authz.model.settings import SettingsError, overlay, parse_settings
from ext_authz.model.types import Settings


def test_pairs_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("cluster_name: one\nipv6: true\npolicy_cidr_match_mode: [nodes, pods]\nallow_localhost: always\n")
    found = parse_settings(["cluster-name=two", "ipv6=false"], str(file))
    assert (found.cluster_name, found.ipv6, found.allow_localhost) == ("two", False, "always")
    assert found.policy_cidr_match_mode == ("nodes", "pods")
    assert parse_settings(["policy_cidr_match_mode="]).policy_cidr_match_mode == ()


@pytest.mark.parametrize(
    "pair",
    ["cluster", "colour=red", "ipv4=maybe", "policy_enforcement=off", "policy_cidr_match_mode=hosts", "cluster_name="],
)
def test_unknown_keys_and_values_are_refused(pair: str) -> None:
    with pytest.raises(SettingsError):
        parse_settings([pair])


@pytest.mark.parametrize("text", ["a: b: c", "[x]", "ipv4: {}", "ipv9: true", "ipv4: x", "ipv4: [a, [b, {}]]"])
def test_a_bad_file_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"s\.yaml"):
        parse_settings([], str(file))


def test_stated_settings_stay_even_where_they_equal_the_default() -> None:
    assert overlay(parse_settings(["ipv6=false"]), {"ipv6": True, "l7_proxy": False}) == Settings(l7_proxy=False)
    assert overlay(Settings(), {"ipv6": True}) == Settings(ipv6=True)
