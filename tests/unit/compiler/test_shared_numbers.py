# SPDX-License-Identifier: Apache-2.0
"""Numbers that the compiler shares with C sources which the binding does not show."""

from __future__ import annotations

import re
from pathlib import Path

from ext_authz.compiler import budget, regex

NATIVE = Path(__file__).parents[3] / "native"
OPERATORS = ("LITERAL", "CLASS", "CAT", "ALT", "STAR", "PLUS", "QUEST", "REPEAT", "ASSERT")


def _defined(file: str, name: str) -> int:
    found = re.search(rf"#define {name} \(?(?:uint32_t\))?(0x[0-9a-f]+|\d+)u?\b", (NATIVE / file).read_text())
    assert found, f"{file} defines no {name}"
    return int(found[1], 0)


def test_operators_of_the_prefix_code_are_those_of_the_builder() -> None:
    code = (NATIVE / "automata/code.h").read_text()
    theirs = {name: int(number) for name, number in re.findall(r"CODE_([A-Z]+) = (\d+)", code)}
    assert theirs == {name: getattr(regex, name) for name in OPERATORS}
    assert _defined("automata/code.h", "CODE_UNBOUNDED") == regex.UNBOUNDED


def test_assertions_of_the_prefix_code_are_those_of_the_builder() -> None:
    listed = re.search(r"enum code_assert \{(.*?)\};", (NATIVE / "automata/code.h").read_text(), re.DOTALL)
    assert listed
    theirs = re.findall(r"ASSERT_(\w+)", listed[1])
    ours = ("BEGIN_TEXT", "END_TEXT", "BEGIN_LINE", "END_LINE", "WORD_BOUNDARY", "NO_WORD_BOUNDARY")
    assert theirs == [name.removesuffix("_BOUNDARY") for name in ours]
    assert [getattr(regex, name) for name in ours] == list(range(len(theirs)))


def test_the_budget_counts_as_many_remembered_answers_as_the_engine_keeps() -> None:
    assert _defined("engine/request.c", "ASKED_MAX") == budget._ASKED_MAX


def test_costs_are_those_of_one_length_of_text() -> None:
    assert _defined("automata/cost.h", "COST_TEXT") == budget.TEXT
