# SPDX-License-Identifier: Apache-2.0
"""Reading text: every node knows its place, and hostile text is refused at a bounded cost."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ext_authz.model import nodes
from ext_authz.model.nodes import (
    MAX_DEPTH,
    Mapping,
    Node,
    Scalar,
    Sequence,
    SyntaxProblem,
    parse_document,
    split_documents,
)


def plain_value(node: Node) -> Any:
    """What PyYAML would make of it, but for numbers, which stay text."""
    if isinstance(node, Mapping):
        return {name: plain_value(value) for name, (_, value) in node.fields.items()}
    return [plain_value(item) for item in node.items] if isinstance(node, Sequence) else node.text


def problem(text: str) -> SyntaxProblem:
    with pytest.raises(SyntaxProblem) as caught:
        parse_document(text)
    return caught.value


def test_every_node_knows_its_place() -> None:
    root = parse_document("a:\n  - b\n  - {c: 'd'}\n")
    assert isinstance(root, Mapping)
    key, value = root.fields["a"]
    assert (key.line, key.column) == (0, 0)
    assert isinstance(value, Sequence)
    first, second = value.items
    assert (first.line, first.column) == (1, 4)
    assert isinstance(second, Mapping)
    inner = second.get("c")
    assert isinstance(inner, Scalar)
    assert (inner.line, inner.column, inner.plain) == (2, 8, False)


def test_json_is_read_with_places() -> None:
    root = parse_document('{\n  "a": [1, "2", true, null]\n}')
    assert root is not None
    assert plain_value(root) == {"a": ["1", "2", "true", "null"]}


def test_json_may_write_a_character_as_two_escapes() -> None:
    root = parse_document(r'{"a": "\ud83d\ude00", "b": "\\ud83d\\ude00"}')
    assert root is not None
    assert plain_value(root) == {"a": "\U0001f600", "b": r"\ud83d\ude00"}


@pytest.mark.parametrize("text", [r"'\ud83d\ude00'", r"\ud83d\ude00", "|-\n  \\ud83d\\ude00"])
def test_what_looks_like_two_escapes_is_text_where_yaml_has_none(text: str) -> None:
    root = parse_document(f"a: {text}\n")
    assert root is not None
    assert plain_value(root) == {"a": r"\ud83d\ude00"}


def test_aliases_and_merges_are_expanded() -> None:
    root = parse_document("base: &b {x: '1', y: '2'}\nuse: {<<: *b, y: '3'}\nlist: [*b]\nmany: {<<: [*b, {z: '4'}]}\n")
    assert root is not None
    assert plain_value(root) == {
        "base": {"x": "1", "y": "2"},
        "use": {"x": "1", "y": "3"},
        "list": [{"x": "1", "y": "2"}],
        "many": {"x": "1", "y": "2", "z": "4"},
    }


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 2, 0, 'duplicate key "a"'),
        ('{"a": 1, "a": 2}', 0, 9, "duplicate key"),
        ("a: {b: 1, 'b': 2}", 0, 10, "duplicate key"),
        ("a: !!python/object:os.system x\n", 0, 3, "unknown tag"),
        ("a: !custom {b: 1}\n", 0, 3, "unknown tag"),
        ("a: !!binary aGk=\n", 0, 3, "unknown tag"),
        ("a: !!set {b}\n", 0, 3, "unknown tag"),
        ("a: *b\n", 0, 3, "not defined before"),
        ("a: &x [*x]\n", 0, 7, "refers to itself"),
        ("a: &x {b: *x}\n", 0, 10, "refers to itself"),
        ("[a, b]: c\n", 0, 0, "a key must be text"),
        ("a: [1, 2\n", 1, 0, "is not YAML"),
        ("a: b: c\n", 0, 4, "is not YAML"),
        ("\ta: b\n", 0, 0, "a tab stands"),
        ("a:\n\tb: c\n", 1, 0, "a tab stands"),
        ("a: 'x\n", 1, 0, "is not YAML"),
        ("a: \x07\n", 0, 3, "is not YAML"),
        ("a: {<<: b}\n", 0, 8, "<< needs a mapping"),
    ],
)
def test_bad_text_is_refused_where_it_is_bad(text: str, line: int, column: int, words: str) -> None:
    found = problem(text)
    assert words in found.reason
    assert (found.line, found.column) == (line, column)


@pytest.mark.parametrize(
    "value", ["*hunter2", "!hunter2", "!hunter2 x", "!<hunter2> x", "!e!hunter2 x", "!!hunter2", "&hunter2 *hunter2",
              "%hunter2", "`hunter2", "@hunter2", "|hunter2", "[hunter2", "'hunter2", '"hunter2']
)  # fmt: skip
def test_what_may_be_the_value_of_a_secret_is_not_quoted(value: str) -> None:
    assert "hunter2" not in problem(f"kind: Secret\nstringData:\n  password: {value}\n").reason


def test_a_duplicate_names_the_first() -> None:
    assert problem("x: 1\ny: 2\nx: 3\n").other == 0


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{a: " * 50_000,
        "- " * 20_000 + "x",
        "\n".join(" " * n + "a:" for n in range(2000)),
        "? " * 5000 + "a",
    ],
    ids=["flow", "maps", "block", "indented", "keys"],
)
def test_nesting_is_bounded(text: str) -> None:
    start = time.monotonic()
    assert "deeper" in problem(text).reason
    assert time.monotonic() - start < 5


def test_nesting_through_aliases_is_bounded() -> None:
    lines = ["a0: &a0 " + "[" * 20 + "x" + "]" * 20]
    lines += [f"a{n}: &a{n} {'[' * 20}*a{n - 1}{']' * 20}" for n in range(1, 10)]
    assert f"deeper than {MAX_DEPTH}" in problem("\n".join(lines)).reason


def test_an_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    start = time.monotonic()
    assert "aliases expand" in problem("\n".join(lines)).reason
    assert time.monotonic() - start < 1


def test_a_merge_bomb_is_refused() -> None:
    fields = ", ".join(f"k{n}: v" for n in range(1000))
    uses = "\n".join(f"u{n}: {{<<: *b}}" for n in range(2000))
    assert "expand" in problem(f"b: &b {{{fields}}}\n{uses}\n").reason


def test_a_document_has_a_bounded_number_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "MAX_NODES", 100)
    assert "more than 100 nodes" in problem("- a\n" * 101).reason


class TestSplitting:
    def documents(self, text: str) -> list[tuple[int, object]]:
        found = []
        for document in split_documents(text):
            root = parse_document(document.text)
            found.append((document.line + (root.line if root is not None else 0), root and plain_value(root)))
        return found

    def test_markers_cut_and_lines_go_on(self) -> None:
        assert self.documents("a: b\n---\nc: d\n--- \n# note\ne: f\n...\ng: h\n") == [
            (0, {"a": "b"}),
            (2, {"c": "d"}),
            (5, {"e": "f"}),
            (7, {"g": "h"}),
        ]

    def test_comments_alone_are_no_document(self) -> None:
        assert self.documents("# a\n---\n\n# b\n---\n---\na: b\n---\n") == [(6, {"a": "b"})]

    def test_content_may_follow_the_marker(self) -> None:
        assert self.documents("--- {a: b}\n--- # c\nd: e\n") == [(0, {"a": "b"}), (2, {"d": "e"})]

    def test_a_marker_inside_text_is_none(self) -> None:
        assert self.documents("a: |\n  ---\n  x\n---x: y\n") == [(0, {"a": "---\nx\n", "---x": "y"})]

    def test_directives_belong_to_the_next(self) -> None:
        assert self.documents("%YAML 1.1\n---\na: b\n...\n%YAML 1.1\n---\nc: d\n") == [(2, {"a": "b"}), (6, {"c": "d"})]

    def test_windows_lines(self) -> None:
        assert self.documents("a: b\r\n---\r\nc: d\r\n") == [(0, {"a": "b"}), (2, {"c": "d"})]

    def test_a_cut_equals_what_the_parser_sees(self) -> None:
        import yaml

        text = "a: b\n--- |\n  text\n  ...\n---\n- x\n...\n---\nlast: c\n"
        expected = [value for value in yaml.safe_load_all(text) if value is not None]
        assert [value for _, value in self.documents(text)] == expected
