# SPDX-License-Identifier: Apache-2.0
"""
HTTP rules: method, path, host, headers, headerMatches.

A pattern must be one both readers take: Cilium's agent compiles path and method with Go's regexp, the proxy all three
with RE2. RE2 decides; what Go alone refuses is refused too. Cilium does not look at host, but the proxy would refuse a
bad one, so it is refused here.

Source: policy-semantics section 11.
"""

from __future__ import annotations

import re

import re2

from ext_authz.model.nodes import Mapping, Node, printable
from ext_authz.model.reading import Reader, child, shown
from ext_authz.model.types import HeaderMatch, HttpRule, SecretRef

MISMATCH_ACTIONS = ("LOG", "ADD", "DELETE", "REPLACE")

_MAX_GROUP_DEPTH = 250  # Go refuses about 500
_FIELDS = ("path", "method", "host", "headers", "headerMatches")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z:]+")
_ESCAPE_OR_GROUP = re.compile(r"\\Q.*?(?:\\E|\Z)|\\(.)|\(\?P?<([^>]*)>", re.DOTALL)


def pattern_problem(pattern: str) -> str | None:
    """Why a regular expression is refused; None if both RE2 and Go take it."""
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0] if error.args else error
        said = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        return f"is no RE2 expression: {printable(said)}"
    if _group_depth(pattern) > _MAX_GROUP_DEPTH:
        return f"nests groups deeper than {_MAX_GROUP_DEPTH} levels"
    for match in _ESCAPE_OR_GROUP.finditer(pattern):
        if match[1] == "C":
            return r"uses \C (one byte), which Go's regexp does not know"
        if match[2] is not None and not match[2].isascii():
            return "names a group with letters outside ASCII, which Go's regexp does not take"
    return None


def _group_depth(pattern: str) -> int:
    """Levels of parentheses, at least as many as there are: those inside character classes count too."""
    depth = deepest = 0
    for letter in re.sub(r"\\.", "", pattern, flags=re.DOTALL):
        depth += (letter == "(") - (letter == ")" and depth > 0)
        deepest = max(deepest, depth)
    return deepest


def read_secret(reader: Reader, node: Node | None, path: str, namespace: str) -> SecretRef | None:
    """{namespace, name}; without a namespace the policy's own."""
    mapping = reader.mapping(node, path, ("namespace", "name"))
    if mapping is None:
        return None
    place = child(path, "name")
    name = reader.text(mapping.get("name"), place)
    if not name:
        if "name" not in mapping.fields or name == "":
            reader.error(mapping.get("name") or mapping, place, "is missing: name the Secret")
        return None
    return SecretRef(reader.text(mapping.get("namespace"), child(path, "namespace")) or namespace, name)


class HttpReader:
    def __init__(self, reader: Reader, namespace: str) -> None:
        self._reader = reader
        self._namespace = namespace
        self.secrets: list[tuple[SecretRef, Node, str]] = []

    def read(self, node: Node, path: str) -> HttpRule | None:
        mapping = self._reader.mapping(node, path, _FIELDS)
        if mapping is None:
            return None
        method, target, host = (self._pattern(mapping, path, name) for name in ("method", "path", "host"))
        lines = (
            self._header_line(item, place)
            for item, place in self._reader.elements(mapping.get("headers"), child(path, "headers"))
        )
        matches = (
            self._header_match(item, place)
            for item, place in self._reader.elements(mapping.get("headerMatches"), child(path, "headerMatches"))
        )
        headers = tuple(header for header in (*lines, *matches) if header is not None)
        return HttpRule(method, target, host, headers, self._reader.origin(node))

    def _pattern(self, mapping: Mapping, path: str, name: str) -> str | None:
        node, place = mapping.get(name), child(path, name)
        text = self._reader.text(node, place)
        if not text or node is None:
            return None
        problem = pattern_problem(text)
        if problem is not None:
            self._reader.error(node, place, f"{shown(text)} {problem}")
            return None
        return text

    def _header_line(self, node: Node, path: str) -> HeaderMatch | None:
        """`Name: value` is an exact value, text without a space asks for the header's presence."""
        text = self._reader.text(node, path)
        if text is None:
            return None
        name, space, value = text.partition(" ")
        if space:
            name = name.rstrip(":")
        return HeaderMatch(name, value if space else None) if self._header_name(node, path, name) else None

    def _header_name(self, node: Node, path: str, name: str) -> bool:
        if _HEADER_NAME.fullmatch(name):
            return True
        advice = "is empty" if not name else f"{shown(name)} is not valid"
        self._reader.error(node, path, f'header name {advice}: write "Name: value", or "Name" for presence')
        return False

    def _header_match(self, node: Node, path: str) -> HeaderMatch | None:
        reader = self._reader
        mapping = reader.mapping(node, path, ("name", "value", "secret", "mismatch"))
        if mapping is None:
            return None
        place = child(path, "name")
        name = reader.text(mapping.get("name"), place)
        if mapping.get("name") is None:
            reader.error(node, place, "is missing: name the header")
        named = name is not None and self._header_name(mapping.get("name") or node, place, name)
        value = reader.text(mapping.get("value"), child(path, "value"))
        mismatch = reader.one_of(mapping.get("mismatch"), child(path, "mismatch"), MISMATCH_ACTIONS)
        secret = self._secret(mapping, path)
        return HeaderMatch(name or "", value or None, secret, mismatch) if named else None

    def _secret(self, mapping: Mapping, path: str) -> SecretRef | None:
        node, place = mapping.get("secret"), child(path, "secret")
        secret = read_secret(self._reader, node, place, self._namespace)
        if secret is not None and node is not None:
            self.secrets.append((secret, node, place))
        return secret
