# SPDX-License-Identifier: Apache-2.0
"""The demo's one table, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ext_authz.demo.scenario import Row, Switch

_HEAD = ("door", "from", "request", "status", "decided by", "nearest miss", "time added")
_GREEN, _RED, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"


def render(rows: Sequence[Row], switches: Sequence[Switch], folder: Path, colour: bool) -> str:
    """The table with an act's title above its rows, then a line for each edit under load."""
    cells = [_cells(row, folder) for row in rows]
    widths = [max(map(len, column)) for column in zip(_HEAD, *cells, strict=True)]
    lines = [_line(_HEAD, widths)]
    act = ""
    for row, texts in zip(rows, cells, strict=True):
        if (row.door + row.act) != act:
            act = row.door + row.act
            lines.append(f"-- {row.act} ".ljust(sum(widths) + 2 * len(widths) - 2, "-"))
        line = _line(texts, widths)
        lines.append(f"{_GREEN if row.ok else _RED}{line}{_PLAIN}" if colour else line)
    return "\n".join([*lines, "", *map(_switch, switches)])


def _cells(row: Row, folder: Path) -> tuple[str, ...]:
    status = f"{row.status:03}" if row.ok else f"{row.status:03}, not {row.expected:03}"
    rule = row.rule.removeprefix(f"{folder}/")
    nobody = "default deny: no rule allows it" if row.status in (0, 403) else "nobody: no rule selects it"
    decided = f"{row.policy} {rule}".strip() or nobody
    added = "" if row.added_us is None else f"{row.added_us / 1e3:+.2f} ms"
    return row.door, row.ship, row.request, status, decided, row.miss, added


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip()


def _switch(switch: Switch) -> str:
    head = f"edit under load, {switch.door}: in force {switch.in_force_ms:.0f} ms after the rename, "
    if switch.ok:
        return head + f"{switch.requests} requests, none failed or misjudged"
    return head + "WRONG: " + "; ".join(switch.wrong)
