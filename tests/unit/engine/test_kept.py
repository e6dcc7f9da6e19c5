# SPDX-License-Identifier: Apache-2.0
"""Which headers of a request a flow record keeps: those that the deciding rules name, and no secret's value."""

from __future__ import annotations

from typing import Any

from ext_authz.engine._engine import ffi, lib

from ext_authz.engine import Flow
from ext_authz.engine.call import Call
from ext_authz.engine.types import Direction, Http
from tests.native.builder import A, header, http, rule, snapshot

NONE = 0xFFFFFFFF
Headers = tuple[tuple[str, str], ...]
HIDDEN = None


class Kept:
    """A snapshot that is asked for kept headers."""

    def __init__(self, data: bytes) -> None:
        made, error = ffi.new("struct idm_snapshot **"), ffi.new("struct idm_error *")
        assert lib.idm_snapshot_load(data, len(data), ffi.NULL, made, error) == 0, ffi.string(error.message)
        self.snapshot = ffi.gc(made[0], lib.idm_snapshot_unref)
        self.cut = False

    def of(self, *entries: int, headers: Headers) -> list[tuple[str, str | None]]:
        call, lines, cut = Call(), ffi.new("struct idm_header_line[]", lib.IDM_KEPT_LINES_MAX), ffi.new("int *")
        call.write(
            Flow(Direction.INGRESS, subject="x", peer=A, protocol=6, port=80, http=Http("GET", "/", "h", headers)),
            NONE,
            A,
        )
        count = lib.idm_kept_headers(
            self.snapshot, list(entries), len(entries), ffi.addressof(call.flow.http), lines, cut
        )
        self.cut = bool(cut[0])
        return [
            (_text(lines[i].name), HIDDEN if _hidden(lines[i].value) else _text(lines[i].value)) for i in range(count)
        ]


def _text(found: Any) -> str:
    return bytes(ffi.buffer(found.ptr, found.size)).decode()


def _hidden(found: Any) -> bool:
    return found.ptr == ffi.NULL and found.size == 1


def test_nothing_is_kept_where_no_rule_names_a_header() -> None:
    kept = Kept(snapshot(http("a", rules=[rule("/a", "GET")])))
    assert kept.of(0, headers=(("x-env", "prod"),)) == []
    assert kept.of(NONE, 7, headers=(("x-env", "prod"),)) == []


def test_lines_are_kept_as_sent_whatever_their_case() -> None:
    kept = Kept(snapshot(http("a", rules=[rule("/a", headers=[header("x-env", "prod"), header("x-seen")])])))
    sent = (("X-Env", "dev"), ("x-env", "prod"), ("x-envy", "1"), ("cookie", "a=b"), ("X-SEEN", ""), ("x-see", ""))
    assert kept.of(0, headers=sent) == [("X-Env", "dev"), ("x-env", "prod"), ("X-SEEN", "")]
    assert kept.of(0, 0, NONE, headers=sent[:1]) == [("X-Env", "dev")]
    assert not kept.cut


def test_only_rules_of_the_deciding_list_count() -> None:
    first = http("a", rules=[rule("/a", headers=[header("x-one", "1")])])
    second = http("b", 81, rules=[rule("/a", headers=[header("x-two", "2")])])
    kept = Kept(snapshot(first, second))
    sent = (("x-one", "1"), ("x-two", "2"))
    found = [kept.of(entry, headers=sent) for entry in (0, 1)]
    assert sorted(found) == [[("x-one", "1")], [("x-two", "2")]]
    assert kept.of(0, 1, headers=sent) == [("x-one", "1"), ("x-two", "2")]


def test_a_secret_is_hidden_whichever_rule_names_its_header() -> None:
    open_rule = http("a", rules=[rule("/a", headers=[header("x-token")])])
    secret_rule = http("b", 81, rules=[rule("/a", headers=[header("x-token", "hush", secret=True)])])
    kept = Kept(snapshot(open_rule, secret_rule))
    for entry in (0, 1):
        assert kept.of(entry, headers=(("X-Token", "hush"), ("x-token", "guess"))) == [
            ("X-Token", HIDDEN),
            ("x-token", HIDDEN),
        ]


def test_what_is_too_much_is_marked() -> None:
    lines = lib.IDM_KEPT_LINES_MAX
    kept = Kept(snapshot(http("a", rules=[rule("/a", headers=[header("x-env")])])))
    assert len(kept.of(0, headers=(("x-env", "1"),) * lines)) == lines
    assert not kept.cut
    assert len(kept.of(0, headers=(("x-env", "1"),) * (lines + 1))) == lines
    assert kept.cut
    many = Kept(snapshot(http("a", rules=[rule("/a", headers=[header(f"x-{i:03}") for i in range(100)])])))
    found = sum(len(many.of(0, headers=((f"x-{i:03}", "1"),))) for i in range(100))
    assert found == 64
    assert many.cut
