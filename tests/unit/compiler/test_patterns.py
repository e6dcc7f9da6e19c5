# SPDX-License-Identifier: Apache-2.0
"""Name patterns as RE2 expressions, tried with RE2 itself."""

from __future__ import annotations

import pytest
import re2

from ext_authz.compiler import patterns


def fits(expression: str, text: str) -> bool:
    return re2.fullmatch(expression, text) is not None


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.example.com", ["a.example.com", "a_b-1.example.com", ".example.com"], ["example.com", "a.b.example.com"]),
        ("**.example.com", ["a.example.com", "a.b.example.com"], ["example.com", "notexample.com", ".example.com"]),
        ("a*.Example.COM.", ["a.example.com", "abc.example.com"], ["b.example.com", "a.b.example.com"]),
        ("api.**.com", ["api.x.com", "api..com"], ["api.x.y.com"]),
        ("***.example.com", ["a.example.com"], ["a.b.example.com"]),
        ("*", ["a", "a.b.c", "_sip._tcp.example.org"], []),
        ("**", ["a.b"], []),
        ("*.*", ["a.b"], ["a", "a.b.c"]),
        ("a+b.com", ["a+b.com"], ["aab.com", "ab.com"]),
    ],
)
def test_match_pattern(pattern: str, matching: list[str], others: list[str]) -> None:
    expression = patterns.dns_pattern_expression(pattern)
    assert [name for name in matching if not fits(expression, patterns.dns_name(name))] == []
    assert [name for name in others if fits(expression, patterns.dns_name(name))] == []


def test_match_name_is_that_name_in_any_case_and_with_or_without_its_dot() -> None:
    expression = patterns.dns_name_expression("API.Example.com.")
    assert fits(expression, patterns.dns_name("api.example.com"))
    assert not fits(expression, patterns.dns_name("apixexample.com"))
    assert patterns.dns_name("A.b.") == patterns.dns_name("a.B") == "a.b."


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("www.example.com", ["www.example.com"], ["wwwxexample.com", ""]),
        ("WWW.example.com.", ["www.example.com"], []),
        ("*.example.com", ["a.example.com", ".example.com"], ["a.b.example.com", "example.com"]),
        ("**.example.com", ["a.example.com", "a.b.example.com"], ["example.com", ".example.com"]),
        ("a.***.com", ["a.b.com", "a.b.c.com"], ["a.com"]),
        ("*", ["a", "a.b.c"], [""]),
        ("api-*.com", ["api-1.com", "api-.com"], ["api-1.x.com"]),
    ],
)
def test_server_names(pattern: str, matching: list[str], others: list[str]) -> None:
    expression = patterns.sni_expression(pattern)
    assert [name for name in matching if not fits(expression, name)] == []
    assert [name for name in others if fits(expression, name)] == []


def test_learned_names_are_tested_as_queries_are() -> None:
    for pattern, name, fitting in (
        ("api.example.com", "api.example.com", True),
        ("*.example.com", "api.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*", "anything.at.all", True),
    ):
        assert patterns.name_matcher(pattern)(patterns.dns_name(name)) is fitting


def test_quoted_text_matches_itself_alone() -> None:
    text = "a.b+c*d?e|f(g)h[i]j{k}l^m$n\\o"
    assert fits(patterns.quote(text), text)
    assert not fits(patterns.quote("a.b"), "axb")
