# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' label selectors over an identity's labels: "app=web,tier in (a, b),!legacy"."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

Labels = Iterable[str]
_SET = re.compile(r"(\S+)\s+(in|notin)\s+\(([^()]*)\)")
_KEY = re.compile(r"[A-Za-z0-9_.:/-]+")


class SelectorError(ValueError):
    """The text is no selector; says which part."""


def parse_selector(text: str) -> Callable[[Labels], bool]:
    """
    A predicate over labels "source:key=value". A key without source means any source.

    Raises:
        SelectorError: Not a selector.
    """
    parts = [_requirement(part.strip()) for part in _split(text)]
    if not parts:
        raise SelectorError("an empty label selector")

    def selects(labels: Labels) -> bool:
        values = _values(labels)
        return all(part(values) for part in parts)

    return selects


def _values(labels: Labels) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for label in labels:
        name, _, value = label.partition("=")
        found.setdefault(name, set()).add(value)
        found.setdefault(name.partition(":")[2], set()).add(value)
    return found


def _split(text: str) -> list[str]:
    """At the commas outside of parentheses."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _requirement(part: str) -> Callable[[dict[str, set[str]]], bool]:
    found = _SET.fullmatch(part)
    if found:
        key, values = _key(found[1], part), {value.strip() for value in found[3].split(",")}
        if found[2] == "in":
            return lambda labels: not values.isdisjoint(labels.get(key, ()))
        return lambda labels: values.isdisjoint(labels.get(key, ()))
    for mark, equal in (("!=", False), ("==", True), ("=", True)):
        name, seen, value = part.partition(mark)
        if seen:
            key, value = _key(name.strip(), part), value.strip()
            return lambda labels: (value in labels.get(key, ())) is equal
    if part.startswith("!"):
        absent = _key(part[1:].strip(), part)
        return lambda labels: absent not in labels
    key = _key(part, part)
    return lambda labels: key in labels


def _key(text: str, part: str) -> str:
    if not _KEY.fullmatch(text):
        raise SelectorError(f"{part!r} is no label selector")
    return text
