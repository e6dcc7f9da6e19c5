# SPDX-License-Identifier: Apache-2.0
"""Whoever gave a capability up gets it back by no program that it begins, and keeps all others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ext_authz.privileges import OF_AGENT, OF_DATA_PATH, give_up

AFTER = """
import os, sys
from ext_authz.privileges import give_up
give_up(int(sys.argv[1]))
os.execv(sys.executable, [sys.executable, "-c", "print(open('/proc/self/status').read())"])
"""


def fields(given_up: int) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-c", AFTER, str(given_up)], capture_output=True, text=True, check=True)
    words = [line.split() for line in done.stdout.splitlines()]
    return {one[0][:-1]: int(one[1], 16) for one in words if one and one[0] in ("CapEff:", "CapPrm:", "NoNewPrivs:")}


@pytest.mark.needs_root
@pytest.mark.parametrize("given_up", [OF_AGENT, OF_DATA_PATH])
def test_a_program_begun_later_has_all_but_what_was_given_up(given_up: int) -> None:
    before, after = fields(0), fields(given_up)
    assert before["CapEff"] & given_up
    assert (after["CapEff"], after["CapPrm"]) == (before["CapEff"] & ~given_up, before["CapPrm"] & ~given_up)
    assert after["NoNewPrivs"] == 1


def test_who_has_none_of_it_may_still_begin_programs_that_gain_others() -> None:
    """As an Envoy whose file has a capability, started by nobody in particular."""
    assert fields(0)["NoNewPrivs"] == fields(1 << 62)["NoNewPrivs"]
    give_up(0)
