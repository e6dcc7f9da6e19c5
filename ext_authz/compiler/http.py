# SPDX-License-Identifier: Apache-2.0
"""
HTTP rules of one entry, arranged so that a request meets few of them and its worst cost is known.

Rules that differ only in the path are one group with one matcher. A group is filed under a literal predicate (a
header's value, the host, the method, a header's presence) that few other groups share; a request looks only at what
is filed under its own values. So groups under different values of one dimension never cost the same request
anything, and that is how the budget counts.

Source: native/include/idmesh/snapshot.h (struct idm_http_set), policy-semantics section 11
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from ext_authz.compiler.entries import HeaderPredicate, HttpMatch
from ext_authz.engine._engine import lib
from ext_authz.engine.types import Mismatch

# Cost of looking at one group or one dimension, in the unit of Matcher.cost.
GROUP_COST = 1
DIM_COST = 1

_META = frozenset(r"\.+*?()|[]{}^$")


class DimKind(IntEnum):
    METHOD = lib.IDM_DIM_METHOD
    HOST = lib.IDM_DIM_HOST
    HEADER_VALUE = lib.IDM_DIM_HEADER_VALUE
    HEADER_PRESENT = lib.IDM_DIM_HEADER_PRESENT


# Decides between values that equally many groups share.
_PREFERENCE = (DimKind.HEADER_VALUE, DimKind.HOST, DimKind.METHOD, DimKind.HEADER_PRESENT)


@dataclass(frozen=True, slots=True)
class Group:
    """
    Rules of equal guard. `paths[i]` belongs to `rules[i]`; no paths: any path, and the first rule stands for all.
    """

    method: str
    host: str
    headers: tuple[HeaderPredicate, ...]
    paths: tuple[str, ...]
    rules: tuple[HttpMatch, ...]


@dataclass(frozen=True, slots=True, order=True)
class Filing:
    """A dimension and the value a request must have there."""

    kind: DimKind
    name: str
    value: str


def literal_of(expression: str) -> str | None:
    """
    The only text an RE2 expression matches in full, or None if it may match another (or none).

    Understood: plain characters, escaped punctuation, classes of one character, a leading ^ and a trailing $.
    """
    text = expression.removeprefix("^")
    if text.endswith("$") and not text.endswith("\\$"):
        text = text[:-1]
    found: list[str] = []
    at = 0
    while at < len(text):
        step, char = _literal_at(text, at)
        if char is None:
            return None
        found.append(char)
        at += step
    return "".join(found)


def _literal_at(text: str, at: int) -> tuple[int, str | None]:
    """Length of the element that starts here, and the one character it matches."""
    char = text[at]
    if char == "\\":
        escaped = text[at + 1 : at + 2]
        # A backslash before a letter or digit is a class, an assertion or a code.
        return 2, escaped if escaped.isascii() and escaped and not escaped.isalnum() and escaped != "_" else None
    if char == "[":
        inside = text[at + 1 : at + 2]
        plain = bool(inside) and inside not in "^[]\\" and text[at + 2 : at + 3] == "]"
        return 3, inside if plain else None
    return 1, None if char in _META else char


def group_rules(rules: Sequence[HttpMatch]) -> list[Group]:
    """Rules by guard, in the order of their first rule. Rules that can never match are left out."""
    guards: dict[tuple[str, str, tuple[HeaderPredicate, ...]], dict[str, HttpMatch]] = {}
    for rule in rules:
        if not any(predicate.never for predicate in rule.headers):
            guards.setdefault((rule.method, rule.host, rule.headers), {}).setdefault(rule.path, rule)
    groups = []
    for (method, host, headers), by_path in guards.items():
        if "" in by_path:
            found = [by_path.pop(""), *by_path.values()]
            groups.append(Group(method, host, headers, (), tuple(found)))
        else:
            groups.append(Group(method, host, headers, tuple(by_path), tuple(by_path.values())))
    return groups


def filings_of(group: Group) -> list[Filing]:
    """Every literal predicate of a group; a request must have all of these values."""
    found = []
    for predicate in group.headers:
        if predicate.mismatch is not Mismatch.FAIL:
            continue
        # A slot holds a plain hash of its value, from which a secret could be guessed.
        if predicate.present or predicate.secret:
            found.append(Filing(DimKind.HEADER_PRESENT, predicate.name, ""))
        else:
            found.append(Filing(DimKind.HEADER_VALUE, predicate.name, predicate.value))
    for kind, expression in ((DimKind.HOST, group.host), (DimKind.METHOD, group.method)):
        literal = literal_of(expression) if expression else None
        if literal is not None:
            found.append(Filing(kind, "", literal))
    return found


def file_groups(groups: Sequence[Group]) -> tuple[dict[Filing, list[int]], list[int]]:
    """Group numbers by the predicate each is filed under, and those that have none."""
    possible = [filings_of(group) for group in groups]
    shared = Counter(filing for filings in possible for filing in set(filings))
    filed: dict[Filing, list[int]] = {}
    always: list[int] = []
    for number, filings in enumerate(possible):
        if filings:
            best = min(filings, key=lambda filing: _rank(filing, shared))
            filed.setdefault(best, []).append(number)
        else:
            always.append(number)
    return filed, always


def _rank(filing: Filing, shared: Mapping[Filing, int]) -> tuple[bool, int, int, Filing]:
    """The least is the most selective: a value before a presence, then the value fewest groups ask for."""
    present = filing.kind is DimKind.HEADER_PRESENT
    return present, shared[filing], _PREFERENCE.index(filing.kind), filing


def worst_cost(filed: Mapping[Filing, Sequence[int]], always: Sequence[int], costs: Sequence[int]) -> int:
    """Most that one request can cost: one value of each dimension, every presence, and all that is always looked at."""
    dims: dict[tuple[DimKind, str], int] = {}
    for filing, groups in filed.items():
        cost = sum(costs[group] + GROUP_COST for group in groups)
        dim = (filing.kind, filing.name)
        dims[dim] = max(dims.get(dim, 0), cost)
    return sum(dims.values()) + DIM_COST * len(dims) + sum(costs[group] + GROUP_COST for group in always)
