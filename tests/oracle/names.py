# SPDX-License-Identifier: Apache-2.0
"""DNS names and server names against their patterns (sections 7, 12 and 13)."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import re2

CHARS = "[-a-zA-Z0-9_]"


def dotted(name: str) -> str:
    name = name.lower()
    return name if name.endswith(".") else name + "."


@functools.cache
def dns_pattern(pattern: str) -> re.Pattern[str]:
    if not pattern.strip("*"):
        return re2.compile("(?s).*")
    text, head = dotted(pattern), ""
    if text.startswith("**."):
        text, head = text[3:], rf"{CHARS}+(\.{CHARS}+)*\."
    body = re.sub(r"\*+", "*", text)
    return re2.compile(head + "".join(f"{CHARS}*" if c == "*" else re.escape(c) for c in body))


def dns_matches(item: Mapping[str, str], name: str) -> bool:
    """True if the matchName or matchPattern of this item covers the name."""
    if item.get("matchName"):
        return dotted(item["matchName"]) == dotted(name)
    return dns_pattern(item["matchPattern"]).fullmatch(dotted(name)) is not None


@functools.cache
def sni_pattern(pattern: str) -> re.Pattern[str]:
    text = pattern.lower().rstrip(".")
    if text == "*":
        return re2.compile(".+")
    pieces = re.split(r"(\*+)", text)
    parts = [many(piece) if piece.startswith("*") else re.escape(piece) for piece in pieces]
    return re2.compile("".join(parts))


def many(stars: str) -> str:
    return f"{CHARS}*" if len(stars) == 1 else rf"{CHARS}+(\.{CHARS}+)*"


def sni_matches(patterns: frozenset[str], name: str) -> bool:
    return bool(name) and any(sni_pattern(pattern).fullmatch(name.lower()) is not None for pattern in patterns)
