# SPDX-License-Identifier: Apache-2.0
"""
YAML as machines write it, read line by line: one key, or one element, a line, every value a short plain or quoted word.

That is most of what a node reads again and again, and a general parser takes ten times as long for it. Every doubt
is answered by None: the text is then read by the general parser, which gives the same nodes where this one gives any.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from ext_authz.model.nodes import Mapping, Scalar, Sequence

_WORD = r"[A-Za-z0-9_/.][A-Za-z0-9_/.:@%+=-]*(?<!:)"
_QUOTED = r"\"[ !#-\[\]-~]*\"|'[ -&(-~]*'"
_LINE = re.compile(
    rf"( *)(- )?(?:([A-Za-z_][A-Za-z0-9_./-]{{0,127}}):(?: ({_WORD}|{_QUOTED}))?"
    rf"|((?<=- )(?:{_WORD}|{_QUOTED})))(?:\n|\Z)"
)
_START = "---\n"
_TEXT_MAX = 1 << 20
_DEPTH_MAX = 32

_Open: TypeAlias = "list[tuple[int, Mapping | Sequence]]"


def parse_plain(text: str) -> Mapping | None:
    """The nodes of a document that is a block mapping of the simplest form, else None."""
    if len(text) > _TEXT_MAX:
        return None
    at, number = (len(_START), 1) if text.startswith(_START) else (0, 0)
    opened: _Open = []
    waiting: tuple[Mapping, Scalar] | None = None  # a key whose value begins in the next line
    match = _LINE.match
    while at < len(text):
        found = match(text, at)
        if found is None:
            return None
        at = found.end()
        spaces, dash, key, value, element = found.groups()
        indent = len(spaces)
        place = _place(opened, waiting, indent, number, dash is not None)
        if place is None:
            return None
        waiting = None
        if isinstance(place, Sequence):
            indent += 2
            if key is None:
                place.items.append(_scalar(element, number, indent))
                number += 1
                continue
            held = Mapping(number, indent)
            place.items.append(held)
            opened.append((indent, held))
            place = held
        if key is None or key in place.fields:
            return None
        name = Scalar(key, True, number, indent)
        if value is None:
            waiting = place, name
        else:
            place.fields[key] = name, _scalar(value, number, indent + len(key) + 2)
        number += 1
    if waiting is not None or not opened:
        return None
    root = opened[0][1]
    return root if isinstance(root, Mapping) else None


def _place(
    opened: _Open, waiting: tuple[Mapping, Scalar] | None, indent: int, line: int, is_element: bool
) -> Mapping | Sequence | None:
    """What a line belongs to, if that is certain. What begins with it is made, what ended before it is closed."""
    if waiting is not None:
        last = opened[-1][0]
        if len(opened) > _DEPTH_MAX or indent < last + (not is_element):
            return None
        made = Sequence(line, indent) if is_element else Mapping(line, indent)
        waiting[0].fields[waiting[1].text] = waiting[1], made
        opened.append((indent, made))
        return made
    if not opened:
        if indent or is_element:
            return None
        opened.append((0, Mapping(line, 0)))
        return opened[0][1]
    wanted = Sequence if is_element else Mapping
    while opened:
        column, place = opened[-1]
        if column == indent and place.__class__ is wanted:
            return place
        if column < indent:
            return None
        opened.pop()
    return None


def _scalar(text: str, line: int, column: int) -> Scalar:
    if text[0] in "\"'":
        return Scalar(text[1:-1], False, line, column)
    return Scalar(text, True, line, column)
