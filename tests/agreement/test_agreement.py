# SPDX-License-Identifier: Apache-2.0
"""
Random worlds, policies and flows: the product decides as the oracle does, and never lets pass what it denies.

IDMESH_AGREEMENT_FLOWS asks for more flows, IDMESH_AGREEMENT_SEED starts elsewhere.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.agreement.compare import Mismatch, compare, run, shrink

FLOWS = int(os.environ.get("IDMESH_AGREEMENT_FLOWS", "100000"))
FIRST = int(os.environ.get("IDMESH_AGREEMENT_SEED", "0"))


def told(found: list[Mismatch]) -> str:
    return "\n".join(shrink(mismatch).text() for mismatch in found[:2])


def test_product_decides_as_the_oracle_on_random_flows() -> None:
    found, counts = run(FLOWS, FIRST)
    assert not found, told(found)
    assert counts["flows"] >= FLOWS
    # The flows are worth asking about: every kind of answer came often.
    for kind in ("allow", "deny", "redirect", "allow direct", "allow proxy", "deny l4", "deny proxy"):
        assert counts[kind] > FLOWS / 200, counts


def test_a_difference_is_seen_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself: with an engine that never denies, it finds that out in one policy."""
    from tests.agreement import compare as module

    honest = module.Product.answer

    def generous(self: module.Product, probe: module.Raw) -> module.Raw:
        got = honest(self, probe)
        return {"expect": "allow"} if got == {"expect": "deny", "drop": 133} else got

    monkeypatch.setattr(module.Product, "answer", generous)
    found = next(mismatch for seed in range(20) for mismatch in compare(seed, Counter()) if mismatch.widens)
    small = shrink(found)
    assert small.widens
    assert len(small.scenario.policies) <= 1
    assert len(small.text()) < len(found.text())
    assert "ALLOWED WHAT THE ORACLE DENIES" in small.text()
