# SPDX-License-Identifier: Apache-2.0
"""
YAML and JSON text as a tree that knows where each node was written.

The tree is built from parser events, not from a ready-made composer: so depth, aliases and duplicate keys are bounded
while reading, and a hostile file costs no more than its own length. Scalars keep their text; what type a plain scalar
has is asked only where a field is read (reading.py), because Kubernetes knows the type it wants and YAML only guesses.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml
from yaml._yaml import CParser  # type: ignore[import-untyped, import-not-found, unused-ignore]

MAX_DEPTH = 64
MAX_ALIASED_NODES = 100_000  # nodes that exist only because an alias repeats them
MAX_NODES = 2_000_000
MAX_TEXT = 64 << 20

_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = {"!", _TAG + "str"}
_PLAIN_TAGS = {_TAG + name for name in ("int", "float", "bool", "null")}
# Not quoted: it may be how a value begins that is nobody's business.
_UNKNOWN_TAG = "unknown tag; remove it, or put a value that begins with ! in quotes"
_SEPARATOR = re.compile(r"^(?:---(?=[ \t\r\n]|\Z)|\.\.\.(?=[ \t\r\n]|\Z)[^\n]*\n?)", re.MULTILINE)
# JSON writes what lies beyond 16 bits as two escapes, YAML as one.
_SURROGATES = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_IDLE_LINE = re.compile(r"[ \t]*(?:#.*)?\r?")


class SyntaxProblem(Exception):
    """
    Text that is no single, bounded YAML document.

    Lines and columns count from 0 inside that text; `other` is the line of a second place the reason speaks of.
    """

    def __init__(self, line: int, column: int, reason: str, other: int | None = None) -> None:
        super().__init__(reason)
        self.line = line
        self.column = column
        self.reason = reason
        self.other = other


class Scalar:
    """Text of one scalar; `plain` if it was not quoted, so that YAML could read it as a number, a boolean or null."""

    __slots__ = ("column", "line", "plain", "text")

    def __init__(self, text: str, plain: bool, line: int, column: int) -> None:
        self.text = text
        self.plain = plain
        self.line = line
        self.column = column


class Sequence:
    __slots__ = ("column", "items", "line")

    def __init__(self, line: int, column: int) -> None:
        self.items: list[Node] = []
        self.line = line
        self.column = column


class Mapping:
    """`fields` in the order written: name to (the key's own node, the value)."""

    __slots__ = ("column", "fields", "line")

    def __init__(self, line: int, column: int) -> None:
        self.fields: dict[str, tuple[Scalar, Node]] = {}
        self.line = line
        self.column = column

    def get(self, name: str) -> Node | None:
        found = self.fields.get(name)
        return None if found is None else found[1]


Node: TypeAlias = Scalar | Sequence | Mapping


@dataclass(frozen=True, slots=True)
class Document:
    """One document's own text; `line` is where it starts in the file, from 0."""

    text: str
    line: int


def split_documents(text: str) -> Iterator[Document]:
    """
    Cut a file at its document markers, without parsing it.

    A marker at the start of a line always ends a document, even inside a block scalar, so a cut is never wrong. Parts
    that hold only comments are left out; a part of directives goes with the document that follows.
    """
    start = line = 0
    pending = ""
    cuts = [match.span() for match in _SEPARATOR.finditer(text)]
    for marker, after in [*cuts, (len(text), len(text))]:
        is_end_marker = text.startswith("...", marker)
        stop = after if is_end_marker else marker
        part = text[start:stop]
        if part.startswith("%") and not is_end_marker and marker < len(text):
            pending = part
        elif not _is_idle(part):
            yield Document(pending + part, line - pending.count("\n"))
            pending = ""
        else:
            pending = ""
        line += part.count("\n")
        start = stop


def parse_document(text: str) -> Node | None:
    """
    Parse the one document of a text; None if it holds nothing.

    Raises:
        SyntaxProblem: Bad YAML, duplicate key, unknown tag, alias bomb or too deep.
    """
    if len(text) > MAX_TEXT:
        raise SyntaxProblem(0, 0, f"is longer than {MAX_TEXT >> 20} MiB; split it into several documents")
    try:
        return _parse(text)
    except SyntaxProblem:
        # Only where YAML cannot read it: in single quotes, plain text and blocks the same letters are no escapes.
        joined = _SURROGATES.sub(_join_surrogates, text) if "\\ud" in text or "\\uD" in text else text
        if joined == text:
            raise
    return _parse(joined)


def _parse(text: str) -> Node | None:
    try:
        return _Composer(CParser(text)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark is not None else (0, 0)
        reason = printable(str(error.problem or error.context))
        if "cannot start any token" in reason and _line(text, line).startswith("\t", column):
            reason = "a tab stands where only spaces may"
        raise SyntaxProblem(line, column, f"is not YAML: {reason}") from None
    except yaml.reader.ReaderError as error:
        raise SyntaxProblem(*_place(text, error.position), f"is not YAML: {error.reason}") from None
    except yaml.YAMLError as error:
        raise SyntaxProblem(0, 0, f"is not YAML: {printable(str(error))}") from None


def _line(text: str, number: int) -> str:
    """One line, as YAML counts them; empty past the end."""
    return next(itertools.islice(io.StringIO(text), number, None), "")


def printable(text: str) -> str:
    """The text with what a terminal should not get (control bytes, bidirectional marks) escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _join_surrogates(match: re.Match[str]) -> str:
    high, low = int(match[2], 16), int(match[3], 16)
    return f"{match[1]}\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"


def is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.plain and node.text in ("", "~", "null", "Null", "NULL")


def _place(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n"), len(before) - before.rfind("\n") - 1


def _is_idle(part: str) -> bool:
    if part[4:5].isalnum() and part.startswith("---\n"):  # as most do
        return False
    body = part[3:] if part.startswith("---") else part
    if not body.strip():
        return True
    return all(_IDLE_LINE.fullmatch(line) or line.startswith("...") for line in body.split("\n"))


@dataclass(frozen=True, slots=True)
class _Anchor:
    """What an alias would repeat: nodes in all, and levels of nesting."""

    node: Node
    size: int
    height: int


class _Composer:
    """Builds nodes from a parser's events, one document only."""

    def __init__(self, parser: Any) -> None:
        self._next = parser.get_event
        self._depth = 0
        self._made = 0
        self._aliased = 0
        self._deepest = 0
        self._anchors: dict[str, _Anchor | None] = {}

    def document(self) -> Node | None:
        event = self._next()
        while isinstance(event, yaml.StreamStartEvent):
            event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            return None
        node = self._node(self._next())
        self._next()  # the document's end
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise _problem(event, "is not YAML: more than one document where one was expected")
        return node

    def _node(self, event: Any) -> Node:
        kind = event.__class__
        if kind is yaml.AliasEvent:
            return self._alias(event)
        self._made += 1
        if self._made > MAX_NODES:
            raise _problem(event, f"holds more than {MAX_NODES} nodes; split it into several documents")
        if event.anchor is not None:
            return self._anchored(event)
        mark = event.start_mark
        if kind is yaml.ScalarEvent:
            return Scalar(event.value, _is_plain(event), mark.line, mark.column)
        return self._mapping(event) if kind is yaml.MappingStartEvent else self._sequence(event)

    def _anchored(self, event: Any) -> Node:
        name, event.anchor = event.anchor, None
        self._anchors[name] = None  # not usable inside itself
        before, outer, self._deepest = self._made + self._aliased, self._deepest, self._depth
        node = self._node(event)
        self._anchors[name] = _Anchor(node, self._made + self._aliased - before, self._deepest - self._depth)
        self._deepest = max(outer, self._deepest)
        return node

    def _alias(self, event: Any) -> Node:
        known = self._anchors.get(event.anchor)
        if known is None:
            state = "refers to itself" if event.anchor in self._anchors else "is not defined before"
            # Not quoted: it may be a Secret's value that begins so.
            raise _problem(event, f"the alias {state}; a value that begins with * needs quotes")
        self._aliased += known.size
        if self._aliased > MAX_ALIASED_NODES:
            raise _problem(event, f"aliases expand to more than {MAX_ALIASED_NODES} nodes; write the values out")
        self._deepest = max(self._deepest, self._depth + known.height)
        if self._deepest > MAX_DEPTH:
            raise _problem(event, f"is nested deeper than {MAX_DEPTH} levels")
        return known.node

    def _enter(self, event: Any, tag: str) -> None:
        if event.tag is not None and event.tag not in ("!", _TAG + tag):
            raise _problem(event, _UNKNOWN_TAG)
        self._depth += 1
        self._deepest = max(self._deepest, self._depth)
        if self._depth > MAX_DEPTH:
            raise _problem(event, f"is nested deeper than {MAX_DEPTH} levels")

    def _sequence(self, event: Any) -> Sequence:
        self._enter(event, "seq")
        node = Sequence(event.start_mark.line, event.start_mark.column)
        append = node.items.append
        while (event := self._next()).__class__ is not yaml.SequenceEndEvent:
            append(self._node(event))
        self._depth -= 1
        return node

    def _mapping(self, event: Any) -> Mapping:
        self._enter(event, "map")
        node = Mapping(event.start_mark.line, event.start_mark.column)
        fields = node.fields
        merges: list[Node] = []
        while (event := self._next()).__class__ is not yaml.MappingEndEvent:
            key = self._node(event)
            if key.__class__ is not Scalar:
                raise _problem(event, "a key must be text, not a list or a mapping")
            assert isinstance(key, Scalar)
            value = self._node(self._next())
            if key.text == "<<" and key.plain:
                merges.append(value)
            elif key.text in fields:
                raise _problem(event, f'duplicate key "{printable(key.text)}"', fields[key.text][0].line)
            else:
                fields[key.text] = (key, value)
        for value in merges:
            self._merge(node, value)
        self._depth -= 1
        return node

    def _merge(self, node: Mapping, value: Node) -> None:
        """Apply `<<: *anchor`; fields written beside it win."""
        for source in value.items if isinstance(value, Sequence) else [value]:
            if not isinstance(source, Mapping):
                raise SyntaxProblem(value.line, value.column, "<< needs a mapping, or a list of mappings")
            for name, field in source.fields.items():
                self._aliased += 1
                node.fields.setdefault(name, field)
        if self._aliased > MAX_ALIASED_NODES:
            raise SyntaxProblem(value.line, value.column, f"merges expand to more than {MAX_ALIASED_NODES} fields")


def _problem(event: Any, reason: str, other: int | None = None) -> SyntaxProblem:
    return SyntaxProblem(event.start_mark.line, event.start_mark.column, reason, other)


def _is_plain(event: Any) -> bool:
    tag = event.tag
    if tag is None:
        return bool(event.implicit[0])
    if tag in _TEXT_TAGS:
        return False
    if tag in _PLAIN_TAGS:
        return True
    raise _problem(event, _UNKNOWN_TAG)
