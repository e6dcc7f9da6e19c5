# SPDX-License-Identifier: Apache-2.0
"""
The list of checks. A part adds one with `@check("title")`; its module is named in MODULES.

A check gives findings, each ok, warn or fail, and for the last two what to do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

MODULES = (
    "ext_authz.doctor.python",
    "ext_authz.doctor.engine",
    "ext_authz.doctor.envoy",
    "ext_authz.doctor.abi",
    "ext_authz.doctor.privileges",
    "ext_authz.doctor.statedir",
    "ext_authz.doctor.datapath",
)


class Grade(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    grade: Grade
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined."""

    state: Path
    module: Path


Check = Callable[[Patient], Iterable[Finding]]
_checks: dict[str, Check] = {}


def check(title: str) -> Callable[[Check], Check]:
    """Add a check under a title; titles are listed in the order they were added."""

    def add(function: Check) -> Check:
        _checks[title] = function
        return function

    return add


def ok(text: str) -> Finding:
    return Finding(Grade.OK, text)


def warn(text: str, advice: str) -> Finding:
    return Finding(Grade.WARN, text, advice)


def fail(text: str, advice: str) -> Finding:
    return Finding(Grade.FAIL, text, advice)


def examine(patient: Patient) -> list[tuple[str, Finding]]:
    """Run every check. One that breaks is a finding of its own."""
    for name in MODULES:
        importlib.import_module(name)
    found: list[tuple[str, Finding]] = []
    for title, function in _checks.items():
        try:
            found += [(title, finding) for finding in function(patient)]
        except Exception as error:
            found.append((title, fail(f"the check itself broke: {type(error).__name__}: {error}", "report this")))
    return found
