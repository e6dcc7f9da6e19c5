# SPDX-License-Identifier: Apache-2.0
"""
RE2 expressions to code for the automaton builder.

google-re2 itself says whether an expression is valid and what its character classes hold; only the structure is
read here. So the two cannot disagree about Unicode, case folding or class syntax. What comes out is a flat prefix
code of integers (native/automata/code.h) whose top level is a sequence of elements.
"""

from __future__ import annotations

import re
from functools import lru_cache

import re2

# Operators of the code; native/automata/code.h has the same numbers.
LITERAL, CLASS, CAT, ALT, STAR, PLUS, QUEST, REPEAT, ASSERT = range(1, 10)
# Assertions.
BEGIN_TEXT, END_TEXT, BEGIN_LINE, END_LINE, WORD_BOUNDARY, NO_WORD_BOUNDARY = range(6)
UNBOUNDED = 0xFFFFFFFF

FOLD, DOT_NEWLINE, MULTILINE = 1, 2, 4
_FLAG = {"i": FOLD, "s": DOT_NEWLINE, "m": MULTILINE, "U": 0}

Ranges = tuple[tuple[int, int], ...]
Element = bytes | tuple[int, ...]

_ANY: Ranges = ((0, 0x10FFFF),)
_ANY_BUT_NEWLINE: Ranges = ((0, 9), (11, 0x10FFFF))
_RUN = re.compile(r"[^\\.\[(){|*+?^$]+")
_REPEAT = re.compile(r"\{(\d+)(,(\d*))?\}")
_GROUP = re.compile(r"\?(?:P?<[^>]*>|([imsU]*)(?:-([imsU]*))?([:)]))")
_HEX = re.compile(r"x(?:\{([0-9A-Fa-f]+)\}|([0-9A-Fa-f]{2}))")
_OCTAL = re.compile(r"[0-7]{1,3}")
_PROPERTY = re.compile(r"[pP](?:\{[^}]*\}|.)", re.DOTALL)
_NAMED = re.compile(r"\[:\^?[a-z]+:\]")
_FAR_REACHING = re.compile(r"\\[pPx0-7]|[^\x00-\x7f]")
_CONTROL = {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}
_ASSERTION = {"A": BEGIN_TEXT, "z": END_TEXT, "b": WORD_BOUNDARY, "B": NO_WORD_BOUNDARY}
# The code points whose simple case folding joins them to an ASCII letter: KELVIN SIGN and LONG S.
_FOLDS_TO_ASCII = "\u017f\u212a"


class RegexError(ValueError):
    """The expression is not one RE2 accepts, or one that could not mean the same here."""


def _options() -> re2.Options:
    options = re2.Options()
    options.log_errors = False
    return options


_OPTIONS = _options()


@lru_cache(maxsize=1 << 16)
def parse(pattern: str) -> tuple[int, ...]:
    """
    Read one expression.

    Returns:
        Elements of the top level, in prefix code.

    Raises:
        RegexError: With RE2's reason.
    """
    try:
        re2.compile(pattern, _OPTIONS)
    except re2.error as error:
        raise RegexError(_reason(error)) from None
    except (UnicodeEncodeError, ValueError) as error:
        raise RegexError(str(error)) from None
    return _flatten(_Parser(pattern).run())


def _reason(error: re2.error) -> str:
    text = error.args[0]
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


class _Parser:
    """One pass over a valid expression; open groups are frames on a stack, so depth is no matter."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.flags = 0
        self.items: list[Element] = []
        self.alternatives: list[Element] = []
        self.frames: list[tuple[list[Element], list[Element], int]] = []

    def run(self) -> list[Element]:
        text = self.text
        while self.at < len(text):
            run = _RUN.match(text, self.at)
            if run:
                self.at = run.end()
                self.literals(run.group())
            else:
                self.at += 1
                _SPECIAL[text[self.at - 1]](self)
        if self.frames:
            raise RegexError("missing )")
        return self.close_alternatives()

    def literals(self, run: str) -> None:
        """Characters as such. The last one may yet be repeated, so it stands alone until then."""
        if self.flags & FOLD:
            self.items.extend(_folded(char) for char in run)
            return
        if len(run) > 1:
            self.items.append(run[:-1].encode())
        self.items.append(run[-1:].encode())

    def dot(self) -> None:
        self.items.append(_class(_ANY if self.flags & DOT_NEWLINE else _ANY_BUT_NEWLINE))

    def assertion(self, text: int, line: int) -> None:
        self.items.append((ASSERT, line if self.flags & MULTILINE else text))

    def bracket(self) -> None:
        end = _class_end(self.text, self.at)
        self.items.append(_class(_class_ranges(self.text[self.at - 1 : end], self.flags & FOLD)))
        self.at = end

    def open(self) -> None:
        group = _GROUP.match(self.text, self.at)
        flags = self.flags
        if group:
            self.at = group.end()
            for char in group.group(1) or "":
                flags |= _FLAG[char]
            for char in group.group(2) or "":
                flags &= ~_FLAG[char]
            if group.group(3) == ")":
                self.flags = flags
                return
        elif self.text.startswith("?", self.at):
            raise RegexError("unknown group")
        self.frames.append((self.items, self.alternatives, self.flags))
        self.items, self.alternatives, self.flags = [], [], flags

    def close(self) -> None:
        if not self.frames:
            raise RegexError("unexpected )")
        inner = _cat(self.close_alternatives())
        self.items, self.alternatives, self.flags = self.frames.pop()
        self.items.append(inner)

    def bar(self) -> None:
        self.alternatives.append(_cat(self.items))
        self.items = []

    def close_alternatives(self) -> list[Element]:
        if not self.alternatives:
            return self.items
        return [_alt([*self.alternatives, _cat(self.items)])]

    def brace(self) -> None:
        repeat = _REPEAT.match(self.text, self.at - 1)
        if not repeat:
            self.literals("{")
            return
        self.at = repeat.end()
        low = int(repeat.group(1))
        high = low if repeat.group(2) is None else int(repeat.group(3) or UNBOUNDED)
        self.repeat((REPEAT, low, high))

    def repeat(self, head: tuple[int, ...]) -> None:
        if self.text.startswith("?", self.at):
            self.at += 1  # non-greedy: no difference to a full match
        if not self.items:
            raise RegexError("no argument for repetition operator")
        self.items.append(head + _code(self.items.pop()))

    def escape(self) -> None:
        text = self.text
        char = text[self.at]
        if char == "Q":
            self.quoted()
        elif char in "dDsSwW":
            self.at += 1
            self.items.append(_class(_class_ranges("\\" + char, self.flags & FOLD)))
        elif char in "pP":
            prop = _PROPERTY.match(text, self.at)
            if not prop:
                raise RegexError("bad property")
            self.at = prop.end()
            self.items.append(_class(_class_ranges("\\" + prop.group(), self.flags & FOLD)))
        elif char in _ASSERTION:
            self.at += 1
            self.items.append((ASSERT, _ASSERTION[char]))
        elif char == "C":
            raise RegexError("\\C (a single byte) is not supported")
        else:
            self.literals(self.escaped_character())

    def quoted(self) -> None:
        end = self.text.find("\\E", self.at)
        run = self.text[self.at + 1 : end if end >= 0 else len(self.text)]
        self.at = end + 2 if end >= 0 else len(self.text)
        if run:
            self.literals(run)

    def escaped_character(self) -> str:
        number = _HEX.match(self.text, self.at)
        if number:
            self.at = number.end()
            return chr(int(number.group(1) or number.group(2), 16))
        octal = _OCTAL.match(self.text, self.at)
        if octal:
            self.at = octal.end()
            return chr(int(octal.group(), 8))
        self.at += 1
        char = self.text[self.at - 1]
        return _CONTROL.get(char, char)


_SPECIAL = {
    ".": _Parser.dot,
    "[": _Parser.bracket,
    "(": _Parser.open,
    ")": _Parser.close,
    "{": _Parser.brace,
    "|": _Parser.bar,
    "\\": _Parser.escape,
    "*": lambda parser: parser.repeat((STAR,)),
    "+": lambda parser: parser.repeat((PLUS,)),
    "?": lambda parser: parser.repeat((QUEST,)),
    "^": lambda parser: parser.assertion(BEGIN_TEXT, BEGIN_LINE),
    "$": lambda parser: parser.assertion(END_TEXT, END_LINE),
}


def _code(element: Element) -> tuple[int, ...]:
    return (LITERAL, len(element), *element) if isinstance(element, bytes) else element


@lru_cache(maxsize=4096)
def _class(ranges: Ranges) -> Element:
    """A class of one ASCII character is a literal, so that automata see the longest literals there are."""
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return chr(ranges[0][0]).encode("utf-8", "surrogatepass")
    return (CLASS, len(ranges), *(bound for pair in ranges for bound in pair))


def _joined(items: list[Element]) -> list[Element]:
    """Merge neighbouring literals and spread nested sequences."""
    merged: list[Element] = []
    for item in items:
        if isinstance(item, bytes) and merged and isinstance(merged[-1], bytes):
            merged[-1] += item
        else:
            merged.append(item)
    return merged


def _cat(items: list[Element]) -> Element:
    merged = _joined(items)
    if len(merged) == 1:
        return merged[0]
    return (CAT, len(merged), *(part for item in merged for part in _code(item)))


def _alt(choices: list[Element]) -> Element:
    """
    One of several; neighbouring single characters become one class, as in RE2's parser.

    RE2 reads the range U+0080 to U+10FFFF more widely than its parts (Compiler::Add_80_10ffff), so merging matters
    to texts that are not UTF-8.
    """
    merged: list[Element] = []
    pending: list[tuple[int, int]] = []
    for choice in [*choices, None]:
        ranges = None if choice is None else _single(choice)
        if ranges is not None:
            pending.extend(ranges)
            continue
        if pending:
            merged.append(_class(_union(pending)))
            pending = []
        if choice is not None:
            merged.append(choice)
    if len(merged) == 1:
        return merged[0]
    return (ALT, len(merged), *(part for item in merged for part in _code(item)))


def _single(element: Element) -> Ranges | None:
    """The ranges of an element that is one character."""
    if isinstance(element, bytes):
        text = element.decode("utf-8", "surrogatepass")
        return ((ord(text), ord(text)),) if len(text) == 1 else None
    if element[0] == CLASS:
        return tuple(zip(element[2::2], element[3::2], strict=True))
    return None


def _union(ranges: list[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _flatten(items: list[Element]) -> tuple[int, ...]:
    """The top level without nesting: sequences inside it are spread out."""
    code: list[int] = []
    run = b""
    for item in items:
        if isinstance(item, bytes):
            run += item
            continue
        if item[0] == CAT:
            item = _spread(item, run)
            run = b""
        elif run:
            code += (LITERAL, len(run), *run)
            run = b""
        code += item
    if run:
        code += (LITERAL, len(run), *run)
    return tuple(code)


def _spread(item: tuple[int, ...], run: bytes) -> tuple[int, ...]:
    """A sequence's own elements, with the literal before it."""
    inner = item[2:]
    if run and inner[:1] == (LITERAL,):
        return (LITERAL, len(run) + inner[1], *run, *inner[2:])
    return ((LITERAL, len(run), *run) if run else ()) + inner


def _class_end(text: str, at: int) -> int:
    """Position after the bracket that closes a class whose opening one is before `at`."""
    if text.startswith("^", at):
        at += 1
    if text.startswith("]", at):
        at += 1
    while at < len(text) and text[at] != "]":
        if text[at] == "\\":
            prop = _PROPERTY.match(text, at + 1)
            braced = _HEX.match(text, at + 1)
            at = prop.end() if prop else braced.end() if braced else at + 2
        elif named := _NAMED.match(text, at):
            at = named.end()
        else:
            at += 1
    if at >= len(text):
        raise RegexError("missing ]")
    return at + 1


@lru_cache(maxsize=4096)
def _class_ranges(text: str, fold: int) -> Ranges:
    """What a class (as written) holds, by RE2's own word."""
    finder = re2.compile(f"(?i:{text})+" if fold else f"(?:{text})+", _OPTIONS)
    if _FAR_REACHING.search(text):
        return _asked(finder)
    # Only ASCII is named, so the rest is in or out as one, but for what folds to ASCII.
    low = [(m.start(), m.end() - 1) for m in finder.finditer(bytes(range(128)))]
    if not finder.fullmatch("\u0080"):
        return _union(low + [(ord(c), ord(c)) for c in _FOLDS_TO_ASCII if finder.fullmatch(c)])
    edges, start = [], 0x80
    for char in _FOLDS_TO_ASCII:
        if not finder.fullmatch(char):
            edges.append((start, ord(char) - 1))
            start = ord(char) + 1
    return _union([*low, *edges, (start, 0x10FFFF)])


@lru_cache(maxsize=4096)
def _folded(char: str) -> Element:
    """A character in any case."""
    if char.isascii():
        cases = {ord(char.lower()), ord(char.upper())}
        cases |= {0x212A} if char in "kK" else {0x17F} if char in "sS" else set()
        return _class(_union([(c, c) for c in cases]))
    return _class(_asked(re2.compile(f"(?i:{re2.escape(char)})", _OPTIONS)))


@lru_cache(maxsize=1)
def _all_code_points() -> bytes:
    # Surrogates too: RE2 reads their three-byte forms as code points.
    return "".join(map(chr, range(0x110000))).encode("utf-8", "surrogatepass")


def _asked(finder: re2._Regexp) -> Ranges:
    """Every code point an expression of one character matches."""
    return _union([(_point(m.start()), _point(m.end()) - 1) for m in finder.finditer(_all_code_points())])


def _point(offset: int) -> int:
    """Code point that starts at an offset of _all_code_points()."""
    for first, start, size in ((0x10000, 0x2F780, 4), (0x800, 0xF80, 3), (0x80, 0x80, 2)):
        if offset >= start:
            return first + (offset - start) // size
    return offset
