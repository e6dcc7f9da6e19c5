# SPDX-License-Identifier: Apache-2.0
"""Short ways to write objects for tests of the model, and to see what loading them reported."""

from __future__ import annotations

from ext_authz.model.load import Loaded, load_text
from ext_authz.model.settings import parse_settings
from ext_authz.model.types import Policy


def policy_text(spec: str, kind: str = "CiliumNetworkPolicy", api: str = "cilium.io/v2") -> str:
    """One policy object; `spec` is flow style, so that a whole case stands on one line."""
    return f"apiVersion: {api}\nkind: {kind}\nmetadata: {{name: p}}\nspec: {spec}\n"


def load_policy(spec: str, kind: str = "CiliumNetworkPolicy", settings: str = "") -> Loaded:
    api = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "cilium.io/v2"
    return load_text(policy_text(spec, kind, api), "p.yaml", settings=parse_settings(settings.split()))


def only_policy(loaded: Loaded) -> Policy:
    assert not loaded.errors, loaded.errors
    (policy,) = loaded.world.policies
    return policy


def assert_refused(loaded: Loaded, field: str, words: str) -> None:
    """Exactly one field is wrong, it is this one, and the reason says these words; the policy does not count."""
    assert loaded.errors, "accepted"
    assert {error.field for error in loaded.errors} == {field}
    assert any(words in error.reason for error in loaded.errors), [error.reason for error in loaded.errors]
    lines = loaded.objects[0].text.split("\n")
    for error in loaded.errors:
        assert error.origin.line == 4  # where policy_text writes the spec
        assert 1 <= error.origin.column <= len(lines[error.origin.line - 1]) + 1
    assert not loaded.world.policies
    assert [entry.ok for entry in loaded.objects] == [False]
