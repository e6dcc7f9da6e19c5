# SPDX-License-Identifier: Apache-2.0
"""What a check says of one place, and the list of the checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ext_authz.doctor.config.node import Node

if TYPE_CHECKING:
    from ext_authz.doctor.config.view import View


class Severity(StrEnum):
    """error: policy can be evaded, or nothing is served. warning: it costs, or somebody else could make it one."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """check: a short name that does not change, for scripts. path, line: where."""

    severity: Severity
    check: str
    path: str
    line: int
    what: str
    why: str
    remedy: str


Check = Callable[["View"], Iterable[Finding]]
_checks: list[Check] = []


def check(function: Check) -> Check:
    """Add a check to the list."""
    _checks.append(function)
    return function


def error(name: str, at: Node, what: str, why: str, remedy: str) -> Finding:
    return Finding(Severity.ERROR, name, at.path or ".", at.line, what, why, remedy)


def warning(name: str, at: Node, what: str, why: str, remedy: str) -> Finding:
    return Finding(Severity.WARNING, name, at.path or ".", at.line, what, why, remedy)


def run_checks(view: View) -> Iterator[Finding]:
    """Every check's findings, once each. One that breaks is a finding of its own."""
    seen = set()
    for function in _checks:
        for finding in _findings(function, view):
            if finding not in seen:
                seen.add(finding)
                yield finding


def _findings(function: Check, view: View) -> list[Finding]:
    try:
        return list(function(view))
    except Exception as broken:
        what = f"the check {function.__name__} broke: {type(broken).__name__}: {broken}"
        return [error("doctor", view.root, what, "this part was not judged", "report it with the configuration")]
