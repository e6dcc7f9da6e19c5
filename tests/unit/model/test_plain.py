# SPDX-License-Identifier: Apache-2.0
"""The short way to read plain YAML gives what the general parser gives, or nothing."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from ext_authz.model.nodes import Mapping, Node, Scalar, Sequence, SyntaxProblem, parse_document
from ext_authz.model.plain import parse_plain

COUNT = int(os.environ.get("IDMESH_PLAIN_TEXTS", "20000"))
POD = """---
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  labels:
    app: web
    app.kubernetes.io/part-of: shop
spec:
  containers:
  - name: main
    ports:
    - containerPort: 80
      name: "http"
status:
  podIPs:
    - ip: 10.0.0.1
    - ip: 'fd00::1'
"""
_WORDS = ("a", "b1", "10.0.0.1", "fd00::1", "yes", "null", "1e3", "0x10", "x:y", "k8s:a=b", ".5", "a/b-c_d", "-", "- a")
_ODD: tuple[str, ...] = (
    "a:",
    ": a",
    "#x",
    "a #b",
    "!t",
    "&x",
    "*x",
    "|",
    ">",
    "{}",
    "[]",
    "~",
    "",
    "a b",
    "é",
    "...",
    "---",
    "%",
    "@a",
    "'\\ud83d\\ude00'",
)
_ODD += ('"', "'", '"a\\n"', "'it''s'", '"# no"', "'a: b'", '"a: b"', "a,b", "a\t", "\ta", "?", "? a", "-a", "<<", "=")
_KEYS = ("a", "b", "c-d", "e/f", "g.h", "_i", "yes", "null", "1", "<<", '"q"', "k:v", "a b", "x" * 130)


def test_what_machines_write_is_read_the_short_way() -> None:
    root = parse_plain(POD)
    assert root is not None
    assert _shape(root) == _shape(parse_document(POD))


@pytest.mark.parametrize(
    "text",
    [
        "a: b\n  c: d\n",  # one scalar over two lines
        "a:\nb: c\n",  # null
        "a: b\na: c\n",  # twice
        "a: 'it''s'\n",
        'a: "x\\ty"\n',
        "a: b # remark\n",
        "a: &x b\n",
        "a:\n\tb: c\n",
        "a: b\r\n",
        "- a: b\n",
        "a: b\n---\nc: d\n",
        "a: b\n\n",
        "",
        "---\n",
        "a:\n  - b\n c: d\n",
        "a:\n  b: c\n d: e\n",
        "a:\n- b: c\n   d: e\n",
    ],
)
def test_the_rest_is_left_to_the_general_parser(text: str) -> None:
    assert parse_plain(text) is None


def test_on_any_text_it_gives_the_same_nodes_or_none() -> None:
    source, read = random.Random(3), 0
    for _ in range(COUNT):
        text = _text(source)
        found = parse_plain(text)
        if found is None:
            continue
        read += 1
        try:
            wanted = parse_document(text)
        except SyntaxProblem as problem:
            raise AssertionError(text) from problem
        assert wanted is not None, text
        assert _shape(found) == _shape(wanted), text
    assert read > COUNT / 20


def _shape(node: Node | None) -> Any:
    """All of a node."""
    if isinstance(node, Scalar):
        return node.text, node.plain, node.line, node.column
    if isinstance(node, Sequence):
        return [node.line, node.column, *map(_shape, node.items)]
    assert isinstance(node, Mapping)
    fields = [(name, _shape(key), _shape(value)) for name, (key, value) in node.fields.items()]  # in their order
    return node.line, node.column, fields


def _text(source: random.Random) -> str:
    """Lines that often fit each other."""
    lines = ["---"] if source.random() < 0.2 else []
    indent = 0
    oddness = source.choice((0.0, 0.0, 0.02, 0.1))
    for _ in range(source.randrange(1, 12)):
        value = source.choice(_ODD) if source.random() < oddness else source.choice(_WORDS[:12])
        key = source.choice(_KEYS) if source.random() < oddness else "".join(source.choices("abcdefg", k=2))
        kind = source.random()
        opens = False
        if kind < 0.35:
            line = f"{key}:"
            opens = True
        elif kind < 0.65:
            line = f"{key}: {value}"
        elif kind < 0.8:
            line = f"- {key}: {value}"
        elif kind < 0.85:
            line, opens = f"- {key}:", True
        elif kind < 0.95:
            line = f"- {value}"
        else:
            line = source.choice((f'{key}: "{value}"', f"{key}: '{value}'", value))
        if source.random() < oddness:
            line += source.choice((" ", "  # x", ":", "\t", "\r", "\u00a0", "\u0085"))
        lines.append(" " * indent + line)
        step = source.random()
        if opens:
            indent += source.choice((0, 1, 2, 2, 2, 4)) + 2 * line.startswith("-")
        elif line.startswith("-"):
            indent += source.choice((0, 2, 2)) if step < 0.6 else 0
        elif step < 0.3:
            indent = max(0, indent - source.choice((1, 2, 2, 2, 4)))
        elif step < 0.3 + oddness:
            indent += 2
    return "\n".join(lines) + source.choice(("\n", "\n", "\n", ""))
