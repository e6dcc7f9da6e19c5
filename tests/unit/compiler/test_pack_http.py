# SPDX-License-Identifier: Apache-2.0
"""Laws of the arrangement of HTTP rules: groups, literal predicates, filing and the worst cost."""

import re2
from hypothesis import given
from hypothesis import strategies as st

from ext_authz.compiler.entries import HeaderPredicate
from ext_authz.compiler.http import DimKind, Filing, file_groups, filings_of, group_rules, literal_of, worst_cost
from tests.unit.compiler.handmade import http_rule

EXPRESSIONS = st.text(alphabet="ab.\\[]()*+?^$|{}-Q1 é", max_size=8)


@given(EXPRESSIONS)
def test_a_literal_is_the_only_text_its_expression_matches(expression):
    literal = literal_of(expression)
    if literal is None:
        return
    compiled = re2.compile(expression)
    assert compiled.fullmatch(literal)
    for other in {literal + "a", literal[:-1], "b" + literal, literal.upper(), literal.replace(".", "a")} - {literal}:
        assert not compiled.fullmatch(other)


def test_escaped_and_bracketed_characters_are_literal():
    assert literal_of("foo[.]com") == "foo.com"
    assert literal_of(r"foo\.com:8080") == "foo.com:8080"
    assert literal_of("^GET$") == "GET"


def test_what_may_match_more_than_one_text_is_no_literal():
    for expression in ("foo.com", "GET|PUT", r"\d", "a?", "(?i)get", "[ab]", r"\Qa\E", "a{2}", "[^a]", r"a\$|b$"):
        assert literal_of(expression) is None


def test_rules_that_differ_in_the_path_are_one_group():
    rules = [http_rule("/a", "GET"), http_rule("/b", "GET"), http_rule("/a", "PUT"), http_rule("/a", "GET")]
    groups = group_rules(rules)
    assert [(group.method, group.paths) for group in groups] == [("GET", ("/a", "/b")), ("PUT", ("/a",))]
    assert all(len(group.rules) == len(group.paths) for group in groups)


def test_a_rule_without_path_makes_its_group_match_any():
    (group,) = group_rules([http_rule("/a", "GET"), http_rule("", "GET")])
    assert group.paths == ()
    assert group.rules[0].path == ""


def test_actions_are_part_of_the_guard():
    add = HeaderPredicate("x", "1", mismatch=2)
    assert len(group_rules([http_rule("/a"), http_rule("/a", headers=[add])])) == 2


def test_rules_with_a_missing_value_are_left_out():
    assert group_rules([http_rule("/a", headers=[HeaderPredicate("x", "", never=True)])]) == []


def test_only_predicates_that_must_hold_file_a_group():
    add, wrong = HeaderPredicate("x", "1", mismatch=2), HeaderPredicate("y", "", present=True, mismatch=1)
    (group,) = group_rules([http_rule("/a", "GET|PUT", "a.b", [add, wrong])])
    assert filings_of(group) == []


def test_a_secret_value_is_not_hashed_into_a_slot():
    (group,) = group_rules([http_rule("/a", headers=[HeaderPredicate("x", "hunter2", secret=True)])])
    assert filings_of(group) == [Filing(DimKind.HEADER_PRESENT, "x", "")]


def test_groups_are_filed_where_fewest_share():
    rules = [http_rule("/", "GET", "a[.]com", [HeaderPredicate("x", str(n))]) for n in range(3)]
    filed, always = file_groups(group_rules(rules))
    assert set(filed) == {Filing(DimKind.HEADER_VALUE, "x", str(n)) for n in range(3)}
    assert always == []
    shared = [http_rule("/", "GET", f"h{n}", [HeaderPredicate("x", "same")]) for n in range(3)]
    assert {filing.kind for filing in file_groups(group_rules(shared))[0]} == {DimKind.HOST}


HEADERS = st.lists(
    st.builds(HeaderPredicate, st.sampled_from("xy"), st.sampled_from("12"), st.booleans()), max_size=2, unique=True
)
RULES = st.lists(
    st.builds(
        http_rule,
        st.sampled_from(["/a", "/b", ""]),
        st.sampled_from(["GET", "PUT", "GET|PUT", ""]),
        st.sampled_from(["h1", "h2", ".*", ""]),
        HEADERS,
    ),
    max_size=12,
)
REQUESTS = st.tuples(
    st.sampled_from(["GET", "PUT"]),
    st.sampled_from(["h1", "h2"]),
    st.dictionaries(st.sampled_from("xy"), st.sampled_from("12")),
)


@given(RULES, REQUESTS)
def test_a_request_meets_every_group_that_could_match_it(rules, request_facts):
    groups = group_rules(rules)
    met = set(groups_met(groups, request_facts))
    for number, group in enumerate(groups):
        if could_match(group, request_facts):
            assert number in met


@given(RULES, REQUESTS)
def test_no_request_costs_more_than_the_worst_cost(rules, request_facts):
    groups = group_rules(rules)
    costs = [number + 1 for number in range(len(groups))]
    filed, always = file_groups(groups)
    assert sum(costs[number] for number in groups_met(groups, request_facts)) <= worst_cost(filed, always, costs)


def groups_met(groups, request_facts):
    filed, always = file_groups(groups)
    method, host, headers = request_facts
    yield from always
    for filing, numbers in filed.items():
        value = {DimKind.METHOD: method, DimKind.HOST: host}.get(filing.kind, headers.get(filing.name))
        if value == filing.value or (filing.kind is DimKind.HEADER_PRESENT and filing.name in headers):
            yield from numbers


def could_match(group, request_facts):
    method, host, headers = request_facts
    fits = all(p.name in headers and (p.present or headers[p.name] == p.value) for p in group.headers)
    texts = ((group.method, method), (group.host, host))
    return fits and all(not pattern or re2.fullmatch(pattern, text) for pattern, text in texts)
