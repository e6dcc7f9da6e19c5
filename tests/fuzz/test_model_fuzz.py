# SPDX-License-Identifier: Apache-2.0
"""The model's fuzzer for a short while, and every input that ever broke it."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.model_fuzz import check as check_laws
from tests.fuzz.model_fuzz import corpus, run


@pytest.mark.parametrize("text", corpus(), ids=range(len(corpus())))
def test_the_laws_hold_for_the_corpus(text: str) -> None:
    check_laws(text, "")


def test_the_laws_hold_for_mutations() -> None:
    seconds = float(os.environ.get("IDMESH_FUZZ_SECONDS", "3")) or 3
    assert run(seconds, seed=20260101) > 0
