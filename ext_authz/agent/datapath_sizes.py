# SPDX-License-Identifier: Apache-2.0
"""Rows of the maps, as the command line gives them: MAP=ROWS."""

from __future__ import annotations

# Of a revision's tables both slots get the same number of rows.
NAMES = (
    "endpoints",
    "prefixes",
    "sides",
    "peers",
    "spans",
    "connections",
    "tokens",
    "grants",
    "tokens_outside",
    "grants_outside",
    "attachments",
    "locals",
    "fragments",
    "services",
    "backends",
    "affinity",
    "translations",
    "workloads",
)
_MOST = 1 << 24


class SizeError(ValueError):
    """No size; the message says why."""


def parse_size(text: str) -> tuple[str, int]:
    """
    Raises:
        SizeError: It is none.
    """
    name, _, rows = text.partition("=")
    if name not in NAMES:
        raise SizeError(f"{name}: no such map; they are {', '.join(NAMES)}")
    if not rows.isdigit() or not 0 < int(rows) <= _MOST:
        raise SizeError(f"{text}: rows must be a number from 1 to {_MOST}")
    return name, int(rows)
