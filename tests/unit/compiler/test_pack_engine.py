# SPDX-License-Identifier: Apache-2.0
"""Round trip: what is packed, the engine takes, and decides as the entries say."""

import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from ext_authz.compiler.entries import L7, EntryVerdict, HeaderPredicate, KafkaMatch
from ext_authz.compiler.pack import Packer, pack
from ext_authz.engine.engine import Engine
from ext_authz.engine.types import Direction, Flow, Http, VerdictCode
from ext_authz.model.types import KafkaRule, NamedPort, Tier
from tests.unit.compiler.handmade import TCP, UDP, changed, entry, http_entry, http_rule, ingress, origin, resolved

PEERS = {"a": 1000, "b": 1001, "c": 1002}
PORTS = st.integers(0, 30)


@st.composite
def l4_entries(draw):
    """An entry of any peer, protocol, ports, verdict, tier and priority; listeners stand for redirects."""
    verdict = draw(st.sampled_from(list(EntryVerdict)))
    first, last = sorted((draw(PORTS), draw(PORTS)))
    protocol = draw(st.sampled_from([0, TCP, UDP]))
    redirect = {"l7": L7.LISTENER, "redirect_priority": draw(st.integers(1, 126))} if verdict == 2 else {}
    return entry(
        draw(st.sampled_from(["a", "b", None])),
        first if protocol else 0,
        (last or 0) if protocol else 65535,
        protocol=protocol,
        verdict=verdict,
        tier=draw(st.sampled_from(list(Tier))),
        priority=draw(st.integers(0, 2)),
        **redirect,
    )


def covers(item, peer, protocol, port):
    return (
        (item.selector is None or item.selector.text == f"{{k8s:app={peer}}}")
        and item.protocol in (0, protocol)
        and item.first_port <= port <= item.last_port
    )


def wanted(entries, peer, protocol, port):
    """The greatest precedence decides; a pass skips what is left of its tier."""
    skipped = set()
    for item in sorted(entries, key=lambda e: -e.precedence):
        if item.tier in skipped or not covers(item, peer, protocol, port):
            continue
        if item.verdict == EntryVerdict.PASS:
            skipped.add(item.tier)
            continue
        return {
            EntryVerdict.ALLOW: VerdictCode.FORWARDED,
            EntryVerdict.REDIRECT: VerdictCode.REDIRECTED,
            EntryVerdict.DENY: VerdictCode.DROPPED,
        }[item.verdict]
    return VerdictCode.DROPPED


@settings(max_examples=150, deadline=None)
@given(st.lists(l4_entries(), max_size=12), st.sampled_from("abc"), st.sampled_from([TCP, UDP, 132]), PORTS)
def test_the_engine_decides_by_the_greatest_precedence_that_covers(entries, peer, protocol, port):
    engine = Engine.open(pack(resolved({300: ingress(*entries)})).snapshot)
    flow = Flow(Direction.INGRESS, PEERS[peer], protocol, port, subject_identity=300)
    assert engine.decide(flow).verdict == wanted(entries, peer, protocol, port)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(l4_entries(), max_size=8), min_size=2, max_size=4))
def test_every_snapshot_of_a_packer_that_goes_on_is_taken(steps):
    packer = Packer()
    world = resolved({300: ingress(*(e for step in steps for e in step))})
    for step in steps:
        packed = packer.pack(changed(world, subjects={300: ingress(*step)}))
        engine = Engine.open(packed.snapshot)
        for peer, identity in PEERS.items():
            flow = Flow(Direction.INGRESS, identity, TCP, 10, subject_identity=300)
            assert engine.decide(flow).verdict == wanted(step, peer, TCP, 10)


def test_every_kind_of_rule_is_taken():
    redirect = {"verdict": EntryVerdict.REDIRECT, "redirect_priority": 101}
    entries = [
        http_entry(
            http_rule(
                "/a/.*",
                "GET|PUT",
                ".*[.]example[.]com",
                [HeaderPredicate("x-a", "1"), HeaderPredicate("x-b", "", True)],
            ),
            http_rule("/b", headers=[HeaderPredicate("x-c", "v", mismatch=2, secret=True)]),
            http_rule("/c", headers=[HeaderPredicate("x-d", "", never=True)]),
        ),
        http_entry(http_rule("/d", headers=[HeaderPredicate("x-d", "", never=True)]), port=81),
        entry("a", 53, protocol=UDP, l7=L7.DNS, dns=(r"a[.]b[.]", r"[-a-zA-Z0-9_]*[.]c[.]"), **redirect),
        entry(
            "a",
            9092,
            l7=L7.KAFKA,
            kafka=(KafkaMatch(KafkaRule(frozenset({0, 3}), 2, "me", "t"), origin()),),
            **redirect,
        ),
        entry("a", 443, l7=L7.OTHER, sni=("a[.]b",), **redirect),
        entry("b", 0, port_name="web"),
    ]
    ports = (NamedPort("web", 8080, "TCP"),)
    world = resolved({300: ingress(*entries)})
    rows = tuple(row if row.number != 300 else type(row)(300, row.labels, ports) for row in world.identities)
    engine = Engine.open(pack(changed(world, identities=rows)).snapshot)
    named = Flow(Direction.INGRESS, 1001, TCP, 8080, subject_identity=300)
    assert engine.decide(named).verdict is VerdictCode.FORWARDED


def test_sets_of_equal_shape_do_not_share_what_the_engine_wants_apart():
    sets = [http_entry(http_rule(f"/{n}", "GET"), http_rule("/x", "PUT"), port=80 + n) for n in range(3)]
    engine = Engine.open(pack(resolved({300: ingress(*sets)})).snapshot)
    for n in range(3):
        flow = Flow(Direction.INGRESS, 1000, TCP, 80 + n, subject_identity=300, http=Http("GET", f"/{n}"))
        assert engine.decide(flow).passes


def test_a_set_whose_rules_never_match_denies_every_request():
    never = http_rule("/.*", headers=[HeaderPredicate("x", "", never=True)])
    engine = Engine.open(pack(resolved({300: ingress(http_entry(never))})).snapshot)
    flow = Flow(Direction.INGRESS, 1000, TCP, 80, subject_identity=300, http=Http("GET", "/"))
    assert engine.decide(flow).verdict is VerdictCode.DROPPED


HEADERS = st.lists(
    st.builds(HeaderPredicate, st.sampled_from(["x", "y"]), st.sampled_from("12"), st.booleans()),
    max_size=2,
    unique=True,
)
RULES = st.lists(
    st.builds(
        http_rule,
        st.sampled_from(["/a", "/b/.*", ".*/c", ""]),
        st.sampled_from(["GET", "PUT", "GET|PUT", ""]),
        st.sampled_from(["h1", "h[.]2", "h.*", ""]),
        HEADERS,
    ),
    min_size=1,
    max_size=10,
)
REQUESTS = st.builds(
    Http,
    st.sampled_from(["GET", "PUT"]),
    st.sampled_from(["/a", "/b/x", "/x/c", "/d"]),
    st.sampled_from(["h1", "h.2", "h2", "g"]),
    st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from("12")).map(lambda found: tuple(found.items())),
)


def holds(rule, request):
    texts = ((rule.path, request.path), (rule.method, request.method), (rule.host, request.host))
    headers = dict(request.headers)
    return all(not pattern or re2.fullmatch(pattern, text) for pattern, text in texts) and all(
        p.name in headers and (p.present or headers[p.name] == p.value) for p in rule.headers
    )


@settings(max_examples=150, deadline=None)
@given(RULES, REQUESTS)
def test_a_request_passes_exactly_if_some_rule_holds_it(rules, request):
    engine = Engine.open(pack(resolved({300: ingress(http_entry(*rules))})).snapshot)
    flow = Flow(Direction.INGRESS, 1000, TCP, 80, subject_identity=300, http=request)
    assert engine.decide(flow).passes == any(holds(rule, request) for rule in rules)
