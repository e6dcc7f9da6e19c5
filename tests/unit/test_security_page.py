# SPDX-License-Identifier: Apache-2.0
"""SECURITY.md and the attacks name each other, and each attack says why it is refused."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LINE = re.compile(r"^- `(test_\w+)`: (.+)$", re.MULTILINE)
_TEST = re.compile(r"^def (test_\w+)", re.MULTILINE)


def _attacks() -> set[str]:
    return {name for path in (ROOT / "tests/attack").glob("test_*.py") for name in _TEST.findall(path.read_text())}


def test_every_attack_stands_in_the_page_and_every_line_is_an_attack() -> None:
    said = [name for name, _ in _LINE.findall((ROOT / "SECURITY.md").read_text())]
    assert sorted(said) == sorted(_attacks())


def test_every_line_ends_with_the_reason_of_the_refusal() -> None:
    for name, text in _LINE.findall((ROOT / "SECURITY.md").read_text()):
        assert re.search(r"refused, because [^:]+\.$", text), name
