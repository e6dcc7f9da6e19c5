# SPDX-License-Identifier: Apache-2.0
"""
Expressions to one matcher: parsed here (control path), compiled by native/automata, matched by the engine.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from ext_authz.compiler.regex import RegexError, parse
from ext_authz.engine._engine import ffi, lib


class PatternError(ValueError):
    """An expression RE2 does not accept, or that cannot mean here what it means to RE2."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"pattern {index}: {reason}")
        self.index = index
        self.reason = reason


class BudgetError(ValueError):
    """
    Expressions that would cost too much at match time, or to compile.

    index names the expression to blame, None if it is all of them together. cost and limit are in units of
    idm_matcher.cost; cost is 0 where it could not be found out.
    """

    def __init__(self, index: int | None, reason: str, cost: int, limit: int) -> None:
        super().__init__(reason if index is None else f"pattern {index}: {reason}")
        self.index = index
        self.reason = reason
        self.cost = cost
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Matcher:
    """
    A blob for IDM_POL_AUTOMATA, and its worst cost (idmesh/matcher.h).

    shared: the part of the cost that all matchers of one text pay together.
    """

    blob: bytes
    cost: int
    shared: int = 0

    def match(self, text: bytes) -> int | None:
        """The outcome for a text, as the engine finds it. For tests and explanations: the blob is checked each time."""
        blob = ffi.from_buffer(self.blob)
        aligned = ffi.new("uint64_t[]", len(self.blob) // 8)
        ffi.memmove(aligned, blob, len(self.blob))
        if lib.idm_matcher_validate(aligned, len(self.blob)):
            raise ValueError("not a matcher")
        outcome = lib.idm_matcher_match(ffi.cast("struct idm_matcher *", aligned), ffi.from_buffer(text), len(text))
        return None if outcome == lib.IDM_NONE else outcome


def build_matcher(patterns: Sequence[str]) -> Matcher:
    """
    Compile expressions into one matcher; outcomes are their positions.

    Raises:
        PatternError: An expression is not valid.
        BudgetError: The expressions would cost more than a request may.
    """
    code = array("I")
    sizes = array("I")
    for index, pattern in enumerate(patterns):
        try:
            parsed = parse(pattern)
        except RegexError as error:
            raise PatternError(index, str(error)) from None
        code.extend(parsed)
        sizes.append(len(parsed))
    result = ffi.new("struct idm_build_result *")
    refused = lib.idm_matcher_build(_words(code), _words(sizes), len(sizes), result)
    if refused:
        raise _budget_error(refused, result)
    try:
        return Matcher(bytes(ffi.buffer(result.blob, result.size)), result.cost, result.shared)
    finally:
        lib.idm_matcher_free(result.blob)


def _words(numbers: array[int]) -> ffi.CData:
    return ffi.from_buffer("uint32_t[]", numbers)


def _budget_error(error: int, result: ffi.CData) -> Exception:
    index = None if result.pattern == lib.IDM_NONE else result.pattern
    if error == lib.IDM_BUILD_MEMORY:
        return MemoryError("no memory to compile expressions")
    if error == lib.IDM_BUILD_COST:
        reason = f"matching could cost {result.cost}, more than the limit of {result.limit}"
    else:
        reason = "its automaton would be too large"
    return BudgetError(index, reason, result.cost, result.limit)
