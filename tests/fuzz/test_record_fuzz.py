# SPDX-License-Identifier: Apache-2.0
"""The records' fuzzer for a short while."""

from __future__ import annotations

import os

from tests.fuzz.record_fuzz import run


def test_the_laws_hold_for_records() -> None:
    seconds = float(os.environ.get("IDMESH_FUZZ_SECONDS", "3")) or 3
    assert run(seconds, seed=20260102) > 0
