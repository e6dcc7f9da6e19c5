# SPDX-License-Identifier: Apache-2.0
"""
Reads typed values out of one object's nodes and collects every problem with its place and field path.

A reader never raises: a value it cannot read is reported and comes back as None, and the caller goes on with the rest,
so that one run shows all that is wrong. An object with a reported error is not used. A known field that is null counts
as absent; a null in a list, or as the value of a label, is an error.

Typing of plain scalars: what YAML 1.1 or 1.2 would read as a boolean, number or null is refused where text is wanted
(as the Kubernetes API does after its own reading), with the advice to quote it; a lone y or n is text, as nobody means
anything else by it there. Where a boolean is wanted, `yes`, `on` and their like are accepted as Kubernetes' YAML reader
accepts them; numbers are plain decimals.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator

from ext_authz.model.nodes import Mapping, Node, Scalar, Sequence, is_null, printable
from ext_authz.model.types import ObjectRef, Origin, PolicyError

_TRUE = {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"}
_FALSE = {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"}
_NULL = {"", "~", "null", "Null", "NULL"}
_NUMBER = re.compile(
    r"[-+]?(?:0[xX][0-9a-fA-F_]+|0o?[0-7_]+|0b[01_]+|[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"
    r"|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_SIMPLE_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")


def kind_of(node: Node) -> str:
    """What a node is, in the words of an error message."""
    if isinstance(node, Mapping):
        return "a mapping"
    if isinstance(node, Sequence):
        return "a list"
    if not node.plain:
        return "text"
    if node.text in _NULL:
        return "null"
    if node.text in _TRUE or node.text in _FALSE:
        return "a boolean"
    return "a number" if _NUMBER.fullmatch(node.text) else "text"


def shown(text: str, limit: int = 80) -> str:
    """Text of a file inside an error message: quoted, control bytes escaped, cut."""
    return f'"{printable(text[:limit])}..."' if len(text) > limit else f'"{printable(text)}"'


def flow_text(node: Node) -> str:
    """The node as YAML in one line that reads as the same node: what was plain and no text stays plain."""
    if isinstance(node, Mapping):
        return f"{{{', '.join(_flow_pair(key, value) for key, value in node.fields.values())}}}"
    if isinstance(node, Sequence):
        return f"[{', '.join(flow_text(item) for item in node.items)}]"
    kind = kind_of(node)
    if kind != "text":
        return "null" if kind == "null" else node.text
    return '"' + "".join(_escaped(letter) for letter in node.text) + '"'


def _flow_pair(key: Node, value: Node) -> str:
    # A key over 1,024 characters has to say that it is one (YAML 1.2, 7.4.2).
    text = flow_text(key)
    return f"{'? ' if len(text) > 1000 else ''}{text}: {flow_text(value)}"


def _escaped(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    if letter.isprintable():
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) <= 0xFFFF else f"\\U{ord(letter):08x}"


def child(path: str, name: str) -> str:
    if not path:
        return printable(name)
    return f"{path}.{name}" if _SIMPLE_NAME.fullmatch(name) else f"{path}[{printable(name)}]"


class Reader:
    """Reads one object. `line` is added to node lines, which count inside the document."""

    def __init__(self, file: str, line: int, ref: ObjectRef) -> None:
        self.file = file
        self.line = line
        self.ref = ref
        self.errors: list[PolicyError] = []
        self.warnings: list[PolicyError] = []
        self._said: set[tuple[int, int, str, str]] = set()
        self._nulls: dict[str, Node] = {}

    @property
    def ok(self) -> bool:
        return not self.errors

    def origin(self, node: Node) -> Origin:
        return Origin(self.file, self.line + node.line + 1, node.column + 1)

    def error(self, node: Node, path: str, reason: str) -> None:
        node = self._nulls.get(path, node)  # what is missing because it is null stands there
        key = (node.line, node.column, path, reason)
        if key not in self._said:  # a parent of several fields is looked at once for each
            self._said.add(key)
            self.errors.append(PolicyError(self.origin(node), self.ref, path, reason))

    def warning(self, node: Node, path: str, reason: str) -> None:
        self.warnings.append(PolicyError(self.origin(node), self.ref, path, reason, "warning"))

    def wrong_type(self, node: Node, path: str, wanted: str) -> None:
        found = kind_of(node)
        hint = ""
        if isinstance(node, Scalar) and wanted == "text" and found in ("a boolean", "a number"):
            hint = f': quote it, "{node.text[:40]}"'
        elif found == "null":
            hint = ": give it a value or leave the field out"
        self.error(node, path, f"must be {wanted}, not {found}{hint}")

    def mapping(self, node: Node | None, path: str, known: Collection[str] | None = None) -> Mapping | None:
        """The node as a mapping; fields outside `known` are reported, null ones dropped. None: absent or reported."""
        if node is None:
            return None
        if not isinstance(node, Mapping):
            self.wrong_type(node, path, "a mapping")
            return None
        if known is not None:
            self.drop_nulls(node, path, known)
            for name, (key, _) in node.fields.items():
                if name not in known:
                    self.error(key, child(path, name), unknown_field(name, known))
        return node

    def drop_nulls(self, node: Mapping, path: str, known: Collection[str]) -> None:
        """Take known fields that are null for absent, as the Kubernetes API server does."""
        for name in [name for name, (_, value) in node.fields.items() if name in known and is_null(value)]:
            key, _ = node.fields.pop(name)
            self._nulls[child(path, name)] = key
            if path not in ("", "metadata"):
                self.warning(key, child(path, name), "is null, which counts as absent")

    def sequence(self, node: Node | None, path: str) -> list[Node] | None:
        if node is None:
            return None
        if not isinstance(node, Sequence):
            self.wrong_type(node, path, "a list")
            return None
        return node.items

    def elements(self, node: Node | None, path: str) -> Iterator[tuple[Node, str]]:
        """Each element of a list with its path; nothing if absent or reported."""
        for index, item in enumerate(self.sequence(node, path) or ()):
            yield item, f"{path}[{index}]"

    def text(self, node: Node | None, path: str) -> str | None:
        if node is None:
            return None
        if not isinstance(node, Scalar) or kind_of(node) != "text":
            self.wrong_type(node, path, "text")
            return None
        return node.text

    def name_key(self, key: Scalar, path: str) -> str | None:
        """A key of a free mapping (labels): must be text, not what YAML reads as a boolean or number."""
        if key.plain and kind_of(key) in ("a boolean", "null"):
            self.error(key, path, f'the key is {kind_of(key)}: quote it, "{key.text}"')
            return None
        return key.text

    def one_of(self, node: Node | None, path: str, allowed: Collection[str]) -> str | None:
        text = self.text(node, path)
        if node is None or text is None or text in allowed:
            return text
        self.error(node, path, f"{shown(text)} is not known: must be one of {', '.join(allowed)}{near(text, allowed)}")
        return None

    def integer(self, node: Node | None, path: str, low: int, high: int) -> int | None:
        if node is None:
            return None
        if not isinstance(node, Scalar) or not node.plain or kind_of(node) != "a number":
            self.wrong_type(node, path, "a whole number")
            return None
        if not _INTEGER.fullmatch(node.text):
            self.error(
                node, path, f"{node.text[:40]} must be a whole decimal number without sign, dots or leading zeros"
            )
            return None
        value = int(node.text)
        if not low <= value <= high:
            self.error(node, path, f"{value} is out of range: must be {low} to {high}")
            return None
        return value

    def boolean(self, node: Node | None, path: str) -> bool | None:
        if node is None:
            return None
        if isinstance(node, Scalar) and node.plain and node.text in _TRUE | _FALSE:
            return node.text in _TRUE
        self.wrong_type(node, path, "a boolean (true or false)")
        return None

    def text_map(self, node: Node | None, path: str) -> dict[str, str]:
        """A mapping of text to text, such as labels; entries that are not are reported and left out."""
        found: dict[str, str] = {}
        mapping = self.mapping(node, path)
        for name, (key, value) in mapping.fields.items() if mapping is not None else ():
            place = child(path, name)
            text = self.text(value, place)
            if self.name_key(key, place) is not None and text is not None:
                found[name] = text
        return found


def present(node: Node | None) -> bool:
    """Written with a value; fields of context kinds may be null, which Kubernetes reads as absent."""
    return node is not None and not is_null(node)


def near(word: str, known: Collection[str]) -> str:
    """Advice if the word is much like a known one, or the same in other case."""
    by_lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word[:64].lower(), list(by_lower), 1)
    return f'; did you mean "{by_lower[matches[0]]}"?' if matches else ""


def unknown_field(name: str, known: Collection[str]) -> str:
    return f"unknown field {shown(name)}; known here: {', '.join(sorted(known))}{near(name, known)}"
