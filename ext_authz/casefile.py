# SPDX-License-Identifier: Apache-2.0
"""
The case format: worlds, policies and probes with the answers they should get, and documents that must be refused.

A case's fixtures are those of its world, added to key by key. Policies keep the lines they have in the case file, so
that an error or a winning rule names the place its author sees. The format is described at the head of
tests/cases/policy.yaml and tests/cases/invalid.yaml.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Raw = dict[str, Any]

FORMAT = 1
FIXTURE_MAPS = ("namespaces", "endpoints", "dns_cache", "cidr_groups", "secrets")
RESULT_KEYS = ("expect", "at", "drop", "auth", "status", "rcode", "outcome", "error_code", "upstream_headers")
REQUESTS = ("http", "dns", "sni", "kafka")
# Of a refused combination: for whom it cannot be computed. Not settings of the agent.
SUBJECT_KEYS = ("subject", "dir")


class CaseError(Exception):
    """A case file that cannot be played; the message names file and case."""


@dataclass(frozen=True, slots=True)
class Document:
    """One policy: as text whose lines and file are the case file's, and as read."""

    text: str
    raw: Raw


@dataclass(frozen=True, slots=True)
class Case:
    """fixtures and settings are complete: the world's and the defaults' parts are merged in."""

    id: str
    file: str
    fixtures: Raw
    settings: Raw
    documents: tuple[Document, ...]
    probes: tuple[Raw, ...]


@dataclass(frozen=True, slots=True)
class InvalidCase:
    """Documents of which at least one, or their combination, must be refused."""

    id: str
    file: str
    layer: str
    fixtures: Raw
    settings: Raw
    documents: tuple[Document, ...]
    subject: str | None = None
    direction: str | None = None


@dataclass(frozen=True, slots=True)
class CaseFile:
    """worlds: the named fixtures, each complete as a case's are."""

    path: str
    worlds: Mapping[str, Raw]
    cases: tuple[Case, ...] = ()
    invalid: tuple[InvalidCase, ...] = ()


def read(path: str | Path) -> CaseFile:
    """
    Read one file of cases or of invalid documents.

    Raises:
        CaseError: It is not a case file, or one of another format.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        root = yaml.compose(text, Loader=yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader)
        raw = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise CaseError(f"{path}: {error}") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or not ({"cases", "invalid"} & raw.keys()):
        raise CaseError(f"{path}: not a case file of format {FORMAT}")
    reader = _Reader(str(path), text, raw)
    fields = dict(_fields(root))
    return CaseFile(
        str(path),
        {name: reader.fixtures({"world": name}) for name in reader.worlds},
        tuple(map(reader.case, raw.get("cases") or [], _items(fields.get("cases")))),
        tuple(map(reader.invalid, raw.get("invalid") or [], _items(fields.get("invalid")))),
    )


def result_of(probe: Mapping[str, Any]) -> Raw:
    """What the probe says should come out."""
    return {key: probe[key] for key in RESULT_KEYS if key in probe}


class _Reader:
    def __init__(self, file: str, text: str, raw: Raw) -> None:
        self.file, self.lines = file, text.splitlines()
        self.defaults = raw.get("defaults") or {}
        self.worlds = raw.get("worlds") or {}

    def case(self, raw: Raw, node: yaml.Node) -> Case:
        try:
            return Case(
                str(raw["id"]),
                self.file,
                self.fixtures(raw),
                {**self.defaults, **(raw.get("settings") or {})},
                self._documents(raw.get("policies") or [], dict(_fields(node)).get("policies")),
                tuple(raw.get("probes") or []),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise self._broken(raw, error) from error

    def invalid(self, raw: Raw, node: yaml.Node) -> InvalidCase:
        try:
            settings, fields = raw.get("settings") or {}, dict(_fields(node))
            if "policy" in raw:
                documents: tuple[Document, ...] = (self._document(raw["policy"], fields["policy"]),)
            else:
                documents = self._documents(raw["policies"], fields["policies"])
            return InvalidCase(
                str(raw["id"]),
                self.file,
                str(raw.get("layer", "")),
                self.fixtures(raw),
                {**self.defaults, **{key: value for key, value in settings.items() if key not in SUBJECT_KEYS}},
                documents,
                settings.get("subject"),
                settings.get("dir"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise self._broken(raw, error) from error

    def _broken(self, raw: Any, error: Exception) -> CaseError:
        named = raw.get("id", "?") if isinstance(raw, dict) else "?"
        return CaseError(f"{self.file}: case {named}: {type(error).__name__}: {error}")

    def fixtures(self, raw: Raw) -> Raw:
        world = self.worlds[raw["world"]] if "world" in raw else {}
        fixtures: Raw = {key: {**(world.get(key) or {}), **(raw.get(key) or {})} for key in FIXTURE_MAPS}
        fixtures["services"] = [*(world.get("services") or []), *(raw.get("services") or [])]
        return fixtures

    def _documents(self, raws: Sequence[Raw], node: yaml.Node | None) -> tuple[Document, ...]:
        return tuple(map(self._document, raws, _items(node)))

    def _document(self, raw: Raw, node: yaml.Node) -> Document:
        """The policy's own lines, moved to the left margin, below as many empty lines as stand above it in the file."""
        start, end = node.start_mark, node.end_mark
        lines = self.lines[start.line : end.line + 1]
        if end.line < len(self.lines):
            lines[-1] = lines[-1][: end.column]
        lines[0] = " " * start.column + lines[0][start.column :]
        margin = start.column
        moved = [line[margin:] if not line[:margin].strip() else line.lstrip() for line in lines]
        text = "\n" * start.line + "\n".join(moved) + "\n"
        try:
            same = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) == raw
        except yaml.YAMLError:
            same = False
        # An alias points outside the policy: written out again, all on the line where the policy starts.
        return Document(text if same else "\n" * start.line + flow(raw), raw)


def flow(value: Any) -> str:
    """One line of YAML in flow style that any reader takes for the same value."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def _fields(node: yaml.Node | None) -> list[tuple[str, yaml.Node]]:
    return [(key.value, value) for key, value in node.value] if isinstance(node, yaml.MappingNode) else []


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    return node.value if isinstance(node, yaml.SequenceNode) else []
