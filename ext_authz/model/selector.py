# SPDX-License-Identifier: Apache-2.0
"""
Label selectors: matchLabels and matchExpressions to requirements.

A key may name a label source ("k8s:app"); without one it means any source. Source and key are checked apart, as Cilium
does since 1.20 (before, the source counted towards the 63 characters of a name).

Source: policy-semantics sections 4 and 18; the Kubernetes rules for label keys and values.
"""

from __future__ import annotations

import re

from ext_authz.model.nodes import Mapping, Node, Scalar
from ext_authz.model.reading import Reader, child, shown
from ext_authz.model.types import LabelSelector, Requirement

OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")

_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_SOURCE = re.compile(r"[A-Za-z0-9]+")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")


def is_subdomain(text: str) -> bool:
    return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


def is_label(text: str) -> bool:
    """A DNS label, as names of namespaces are."""
    return len(text) <= 63 and "." not in text and _SUBDOMAIN.fullmatch(text) is not None


def bad_value(text: str) -> str | None:
    """Why a label value is none; None if it is fine."""
    if len(text) > 63:
        return "is longer than 63 characters"
    if text and not _NAME.fullmatch(text):
        return "must be letters, digits, '-', '_' or '.', and begin and end with a letter or digit"
    return None


def bad_key(key: str) -> str | None:
    """Why a label key (no source) is none; None if it is fine."""
    prefix, slash, name = key.rpartition("/")
    if slash and (not is_subdomain(prefix)):
        return "the part before '/' must be a lower-case DNS name of at most 253 characters"
    if len(name) > 63:
        return "its name is longer than 63 characters"
    if not _NAME.fullmatch(name):
        return "must be [dns-name/]name: letters, digits, '-', '_' or '.', at both ends a letter or digit"
    return None


def split_key(key: str) -> tuple[str, str]:
    """Source and key of a Cilium selector key; the source is "any" where none is written."""
    source, colon, rest = key.partition(":")
    return (source, rest) if colon else ("any", key)


class SelectorReader:
    """
    Reads selectors of one flavour.

    Args:
        source: None: keys may carry a source (Cilium). Otherwise every key has this source and may not name one.
    """

    def __init__(self, reader: Reader, source: str | None = None) -> None:
        self._reader = reader
        self._source = source

    def read(self, node: Node | None, path: str) -> LabelSelector | None:
        """The selector, or None if it is absent or anything in it was reported."""
        before = len(self._reader.errors)
        mapping = self._reader.mapping(node, path, ("matchLabels", "matchExpressions"))
        if mapping is None:
            return None
        labels = self._labels(mapping.get("matchLabels"), child(path, "matchLabels"))
        expressions = self._expressions(mapping.get("matchExpressions"), child(path, "matchExpressions"))
        if len(self._reader.errors) > before:
            return None
        return LabelSelector((*labels, *expressions), len(expressions))

    def _labels(self, node: Node | None, path: str) -> list[Requirement]:
        found = []
        mapping = self._reader.mapping(node, path)
        for name, (key, value) in mapping.fields.items() if mapping is not None else ():
            place = child(path, name)
            split = self._key(key, place)
            text = self._value(value, place)
            if split is not None and text is not None:
                found.append(Requirement(*split, "In", (text,)))
        return found

    def _expressions(self, node: Node | None, path: str) -> list[Requirement]:
        found = []
        for item, place in self._reader.elements(node, path):
            mapping = self._reader.mapping(item, place, ("key", "operator", "values"))
            requirement = self._expression(mapping, place) if mapping is not None else None
            if requirement is not None:
                found.append(requirement)
        return found

    def _expression(self, mapping: Mapping, path: str) -> Requirement | None:
        reader = self._reader
        for name in ("key", "operator"):
            if mapping.get(name) is None:
                reader.error(mapping, child(path, name), "is missing")
        key = mapping.get("key")
        split = self._key(key, child(path, "key")) if reader.text(key, child(path, "key")) is not None else None
        operator = reader.one_of(mapping.get("operator"), child(path, "operator"), OPERATORS)
        place = child(path, "values")
        values = mapping.get("values")
        items = [self._value(item, where) for item, where in reader.elements(values, place)]
        if operator in ("In", "NotIn") and not items:
            reader.error(values or mapping, place, f"must name at least one value for the operator {operator}")
        if operator in ("Exists", "DoesNotExist") and items:
            reader.error(values or mapping, place, f"must be empty for the operator {operator}")
        if split is None or operator is None:
            return None
        return Requirement(*split, operator, tuple(item for item in items if item is not None))

    def _key(self, node: Node | None, path: str) -> tuple[str, str] | None:
        assert isinstance(node, Scalar)
        key = self._reader.name_key(node, path)
        if key is None:
            return None
        if self._source is not None:
            return self._checked(node, path, key, (self._source, key), key)
        source, rest = split_key(key)
        return self._checked(node, path, key, (source, rest), rest)

    def _checked(self, node: Node, path: str, key: str, split: tuple[str, str], full: str) -> tuple[str, str] | None:
        problem = bad_key(full) if split[1] else "is empty"
        if not _SOURCE.fullmatch(split[0]):
            problem = "the source before ':' must be letters and digits"
        if problem is None:
            return split
        self._reader.error(node, path, f"label key {shown(key)} is not valid: {problem}")
        return None

    def _value(self, node: Node, path: str) -> str | None:
        text = self._reader.text(node, path)
        problem = bad_value(text) if text is not None else None
        if problem is not None and text is not None:
            self._reader.error(node, path, f"label value {shown(text)} is not valid: {problem}")
            return None
        return text
