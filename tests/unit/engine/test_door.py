# SPDX-License-Identifier: Apache-2.0
"""The Python door: batches, explanations, dumps, threads."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from ext_authz.engine import Engine, Flow, Http, Kafka, Verdict, dump, layout
from ext_authz.engine.types import Consider, Direction, Evidence, VerdictCode
from ext_authz.model.types import Tier
from tests.native.builder import TCP, WORLD, A, B, allow, build, deny, header, http, rule, skip, snapshot
from tests.unit.engine.ask import ask, engine

FLOW, HEADER, VERDICT = (layout.record(f"idm_batch_{name}") for name in ("flow", "header", "verdict"))


class Batch:
    """Packs flows as decide_batch() takes them."""

    def __init__(self) -> None:
        self.flows, self.headers, self.arena = bytearray(), bytearray(), bytearray()

    def text(self, text: str) -> tuple[int, int]:
        at = len(self.arena)
        self.arena += text.encode()
        return at, len(self.arena) - at

    def add(self, peer: int, port: int, request: Http | None = None, **fields: Any) -> None:
        request_or_none = request or Http("", "", "")
        first = len(self.headers) // HEADER.size
        for name, value in request_or_none.headers:
            self.headers += HEADER.pack(name=self.text(name), value=self.text(value))
        known: dict[str, Any] = {
            "direction": 0,
            "flags": 1 if request else 0,
            "endpoint": 0,
            "subject_identity": 0,
            "peer_identity": peer,
            "evidence": 1,
            "port": port,
            "protocol": TCP,
            "header_first": first,
            "header_count": len(request_or_none.headers),
            "method": self.text(request_or_none.method),
            "path": self.text(request_or_none.path),
            "host": self.text(request_or_none.host),
            "dns": (0, 0),
            "sni": (0, 0),
        }
        self.flows += FLOW.pack(**(known | fields))

    def ask(self, found: Engine) -> list[dict[str, Any]]:
        answer = found.decide_batch(self.flows, self.headers, self.arena)
        return [VERDICT.unpack_from(answer, at) for at in range(0, len(answer), VERDICT.size)]


def test_a_batch_answers_as_single_decisions_do() -> None:
    found = Engine.open(build("http"))
    batch, single = Batch(), []
    for peer in (A, B, WORLD, 4711):
        for request in (
            None,
            Http("GET", "/a/b"),
            Http("POST", "/v1/x", "", (("X-Token", "secret"),)),
            Http("GET", "/api/v1/users/7/orders"),
        ):
            for port in (80, 85, 8080, 1):
                batch.add(peer, port, request)
                single.append(ask(found, peer, port, http=request))
    answers = batch.ask(found)
    assert len(answers) == len(single) == 64
    for got, wanted in zip(answers, single, strict=True):
        assert got["entry"] == (layout.NONE if wanted.entry is None else wanted.entry)
        assert got["http_rule"] == (layout.NONE if wanted.http_rule is None else wanted.http_rule)
        for field in ("verdict", "at", "auth", "l7", "match_type", "l4_verdict", "drop_reason"):
            assert got[field] == getattr(wanted, field)


@pytest.mark.parametrize(
    "fields",
    [
        {"path": (0, 99)},
        {"sni": (0xFFFFFFFF, 1)},
        {"header_count": 1},
        {"header_first": 9},
        {"direction": 2},
        {"flags": 4},
    ],
)
def test_a_malformed_flow_of_a_batch_is_an_error(fields: dict[str, Any]) -> None:
    batch = Batch()
    batch.add(A, 80, None, **fields)
    with pytest.raises(ValueError, match="malformed"):
        batch.ask(Engine.open(build("http")))


def test_an_empty_batch_is_empty() -> None:
    found = Engine.open(build("http"))
    assert len(found.decide_batch(b"")) == 0
    with pytest.raises(ValueError, match="whole number"):
        found.decide_batch(b"x")


def test_explaining_names_what_kept_each_entry_from_deciding() -> None:
    entries = (
        http("a", 80, rules=[rule("/a")]),
        allow("b", 80),
        allow("a", 81),
        allow("a", 80, protocol=17),
        allow("a", "http"),
        allow("pods", 80),
    )
    found = Engine.open(snapshot(*entries))
    flow = Flow(Direction.INGRESS, A, TCP, 80, subject=0, http=Http(path="/other"))
    explained = found.explain(flow)
    assert explained.verdict == found.decide(flow)
    tables = dump.Tables(found)
    reasons = {
        (e["selector"], e["protocol"], e["first_port"], e["port_name"]): item.reason
        for item in explained.considered
        if (e := tables.entry(item.entry))
    }
    assert len(explained.considered) == len(entries)
    assert sorted(reasons.values()) == sorted(
        [Consider.L7, Consider.PEER, Consider.PORT, Consider.PROTOCOL, Consider.PORT_NAME, Consider.WON]
    )


def test_explaining_shows_what_a_pass_skipped() -> None:
    entries = (skip("a", 80, tier=Tier.ADMIN, priority=1), deny("a", None, tier=Tier.ADMIN, priority=2), allow("a", 80))
    explained = Engine.open(snapshot(*entries)).explain(Flow(Direction.INGRESS, A, TCP, 80, subject=0))
    assert explained.verdict.passes
    assert sorted(item.reason for item in explained.considered) == [
        Consider.WON,
        Consider.MATCHED,
        Consider.PASSED_OVER,
    ]


def test_explaining_a_flow_without_policy_considers_nothing() -> None:
    explained = engine(allow("a")).explain(Flow(Direction.INGRESS, A, TCP, 80, subject="default/none"))
    assert (explained.verdict.drop_reason, explained.considered) == (165, ())


def test_explaining_lists_every_entry_once_however_many() -> None:
    entries = [allow("a", port, last=port + 3) for port in range(1000, 2000)]
    explained = Engine.open(snapshot(*entries)).explain(Flow(Direction.INGRESS, A, TCP, 1500, subject=0))
    assert len({item.entry for item in explained.considered}) == len(explained.considered) == 1000
    assert sum(item.reason == Consider.MATCHED for item in explained.considered) == 3


def test_a_dump_shows_tables_but_no_secrets() -> None:
    guarded = rule("/a", headers=[header("x-token", "hunter2", secret=True), header("x-env", "prod")])
    tables = dump.load(snapshot(http("a", 80, rules=[guarded])))
    shown = json.dumps(tables.record()) + tables.text()
    assert "hunter2" not in shown
    assert dump.REDACTED in shown
    assert "prod" in shown
    assert tables.entry(0)["origins"][0]["file"] == "p.yaml"


def test_texts_with_any_bytes_reach_the_engine() -> None:
    found = engine(http("a", 80, rules=[rule(headers=[header("x", "é")])]))
    assert ask(found, http=Http(headers=(("x", "é"),))).passes
    assert ask(found, http=Http(headers=(("X", "\udcc3\udca9"),))).passes
    assert not ask(found, http=Http(headers=(("x", "\udcff"),))).passes


def test_a_flow_leaves_nothing_for_the_next() -> None:
    found = engine(http("a", 80, rules=[rule(headers=[header("x", "1")])]), allow("a", 81))
    assert ask(found, http=Http(headers=(("x", "1"), ("y", "2")))).passes
    assert not ask(found, http=Http()).passes
    assert ask(found, port=81, kafka=Kafka(0, 0, "", ("t",)), sni="x", dns="y").passes
    assert ask(found, port=81).at == 0
    assert not ask(found, evidence=Evidence.NONE).passes


def test_threads_share_an_engine() -> None:
    found = Engine.open(build("http"))
    wrong: list[Verdict] = []

    def work(path: str, passes: bool) -> None:
        for _ in range(2000):
            verdict = ask(found, http=Http("GET", path, "h", (("n", path),)))
            if verdict.passes != passes:
                wrong.append(verdict)

    threads = [threading.Thread(target=work, args=args) for args in (("/a/x", True), ("/zzz", False)) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_unlike_verdicts_are_never_confused_by_the_cache() -> None:
    found = engine(*(allow("a", port) for port in range(1, 5000)))
    assert len({ask(found, port=port).entry for port in range(1, 5000)}) == 4999
    assert ask(found, port=1).verdict == VerdictCode.FORWARDED
