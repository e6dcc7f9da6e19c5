# SPDX-License-Identifier: Apache-2.0
"""
Whatever was edited before: reading and compiling by difference means what reading and compiling anew means.

IDMESH_HISTORY_EDITS asks for more edits, IDMESH_HISTORY_SEED starts elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import astuple, fields, replace
from typing import Any

import yaml

from ext_authz.compiler.assemble import table_digest
from ext_authz.compiler.compile import Compiler, compile_world
from ext_authz.engine import layout
from ext_authz.engine.dump import Tables
from ext_authz.engine.engine import Engine
from ext_authz.engine.layout import IdentitiesSection, PoliciesSection, SelectorsSection, TableKind
from ext_authz.engine.types import Direction, Flow, Http
from ext_authz.explain.view import View
from ext_authz.identity.allocator import AllocationError, MemoryAllocator
from ext_authz.model.load import Loaded, Loader
from tests.agreement.histories import ADDRESSES, History, flows_of

EDITS = int(os.environ.get("IDMESH_HISTORY_EDITS", "300"))
FIRST = int(os.environ.get("IDMESH_HISTORY_SEED", "0"))
_A_HISTORY = 60
_TCP = 6
_CONFIGS: tuple[dict[str, str], ...] = (
    {"enable-policy": "always"},
    {"enable-host-firewall": "true", "allow-localhost": "policy"},
    {"policy-audit-mode": "true"},
    {"enable-ipv6": "false"},
    {"policy-cidr-match-mode": "nodes pods"},
    {"enable-non-default-deny-policies": "false"},
    {},
)


class _Numbers(MemoryAllocator):
    """Numbers that cannot be kept now and then: the next build begins anew."""

    full = False

    def flush(self) -> None:
        if self.full:
            self.full = False
            raise AllocationError("no room")


def test_after_any_edits_what_is_in_force_is_what_a_fresh_start_puts_in_force() -> None:
    compared = 0
    for seed in range(FIRST, FIRST + -(-EDITS // _A_HISTORY)):
        compared += _play(seed)
    # Worlds with errors keep what was good before, so there is nothing to compare them with; most have none.
    assert compared > EDITS / 4


def _play(seed: int) -> int:
    history, numbers, source, config = History(seed), _Numbers(5), random.Random(seed), b""
    loader, compiler, compared = Loader(node="node0"), Compiler(numbers), 0
    for step in range(_A_HISTORY):
        history.edit()
        if source.random() < 0.05:
            config = _config(source.choice(_CONFIGS))
        contents = [*history.contents(), ("config.yaml", config)]
        late, fresh = loader.load_contents(contents), Loader(node="node0").load_contents(contents)
        assert _loaded(late) == _loaded(fresh), (seed, step)
        if source.random() < 0.05:
            numbers.full = True
            with contextlib.suppress(AllocationError):
                compiler.compile(late.world)
        one, two = compiler.compile(late.world), compile_world(fresh.world, numbers)
        _check_digests(one.snapshot)
        if source.random() < 0.5:
            numbers.confirm(one.revision)
        if one.errors or two.errors:
            assert bool(one.errors) == bool(two.errors), (seed, step)
            continue
        assert {item.reason for item in one.warnings} == {item.reason for item in two.warnings}, (seed, step)
        was, now = Engine.open(two.snapshot), Engine.open(one.snapshot)
        for name, wanted in _meaning(was).items():
            assert _meaning(now)[name] == wanted, (seed, step, name)
        for flow in _flows(source):
            assert _answer(now, flow) == _answer(was, flow), (seed, step, flow)
        compared += 1
    return compared


def _config(data: Mapping[str, str]) -> bytes:
    """Settings are among what is edited."""
    raw = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cilium-config"}, "data": data}
    return yaml.safe_dump(raw).encode() if data else b""


def _check_digests(snapshot: bytes) -> None:
    """Equal digests stand for equal tables: one that was kept by difference must be that of the bytes."""
    head, ref = layout.record("idm_header").size, layout.record("idm_table_ref")
    for at in range(head, head + len(layout.SECTIONS) * ref.size, ref.size):
        row = ref.unpack_from(snapshot, at)
        assert table_digest(snapshot[row["offset"] : row["offset"] + row["size"]]) == row["digest"]


def _loaded(loaded: Loaded) -> dict[str, str]:
    """As text: equality of objects passes over where they stand."""
    return {
        **{field.name: repr(getattr(loaded.world, field.name)) for field in fields(loaded.world)},
        **{name: repr(getattr(loaded, name)) for name in ("errors", "warnings", "objects")},
        "skipped": repr(sorted(loaded.skipped.items())),
    }


def _flows(source: random.Random) -> Iterable[Flow]:
    for way, peer, subject, port, method, path in flows_of(source, 150):
        headers = source.choice(((), (("X-Token", "t"),), (("X-S", "hidden"),), (("X-A", "1"), ("X-S", "other"))))
        http = Http(method, path, source.choice(("server", "foo.example.com")), headers) if path else None
        yield Flow(Direction[way.upper()], peer, _TCP, port, subject, http=http)


def _answer(engine: Engine, flow: Flow) -> tuple[Any, ...]:
    """But for numbers, and which of entries that mean the same was met first."""
    found = engine.decide(flow)
    changes = sorted((item.action, item.name, item.value) for item in found.changes)
    return (
        found.verdict,
        found.at,
        found.auth,
        found.l7,
        found.l4_verdict,
        found.drop_reason,
        found.dropped_by,
        changes,
    )


def _meaning(engine: Engine) -> dict[str, Any]:
    """What a snapshot says, without indexes."""
    tables, view = Tables(engine), View(engine)
    count = len(tables.items(TableKind.IDENTITIES, IdentitiesSection.ENDPOINTS))
    names = {index: view.endpoint(index).name for index in range(count)}
    hosts = tables.items(TableKind.IDENTITIES, IdentitiesSection.HOSTS)
    texts = [item["text"] for item in tables.items(TableKind.SELECTORS, SelectorsSection.SELECTORS)]
    lists = tables.items(TableKind.SELECTORS, SelectorsSection.LISTS)
    policies = {name: tables.items(TableKind.POLICIES, number) for name, number in _POLICIES.items()}
    return {
        "meta": policies["META"],
        "identities": [
            (item["id"], item["flags"], view.labels(item["id"]), sorted(view.named_ports(item["id"]).items()))
            for item in tables.items(TableKind.IDENTITIES, IdentitiesSection.IDENTITIES)
        ],
        "endpoints": sorted(
            (astuple(view.endpoint(index)), sorted(view.named_ports(view.endpoint(index).identity, index).items()))
            for index in names
        ),
        "hosts": sorted((h["address"], h["identity"], names.get(h["endpoint"])) for h in hosts if h["family"]),
        "found": [
            (number, None if index is None else names[index]) for number, index in map(engine.resolve, _every_address())
        ],
        "ranges": [
            tables.items(TableKind.IDENTITIES, number)
            for number in (IdentitiesSection.RANGES4, IdentitiesSection.RANGES6)
        ],
        "selected": {
            row["identity"]: sorted(texts[number] for number in lists[row["first"] : row["first"] + row["count"]])
            for row in tables.items(TableKind.SELECTORS, SelectorsSection.ROWS)
        },
        "subjects": {
            item["identity"]: [_side(policies, view, policies["POLICIES"][item["policy"]], side) for side in (0, 1)]
            for item in policies["SUBJECTS"]
        },
    }


_POLICIES = {section.name: section.value for section in PoliciesSection}
_SIDE = ("flags", "any_row", "first_row", "row_count", "text_max")


def _every_address() -> list[str]:
    return [*(f"10.0.0.{number}" for number in range(1, 61)), *ADDRESSES, "192.168.1.0", "192.168.1.1", "198.51.100.7"]


def _side(policies: Mapping[str, Any], view: View, policy: Mapping[str, int], number: int) -> Any:
    side = {name: policy[f"side_{number}_{name}"] for name in _SIDE}
    rows = policies["ROWS"][side["first_row"] :][: side["row_count"]]
    rows += [] if side["any_row"] == layout.NONE else [policies["ROWS"][side["any_row"]]]
    return (side["flags"], side["text_max"], sorted(_row(policies, view, row) for row in rows))


def _row(policies: Mapping[str, Any], view: View, row: Mapping[str, Any]) -> Any:
    spans = policies["SPANS"][row["first_span"] :][: row["span_count"]]
    named = policies["NAMED"][row["first_named"] :][: row["named_count"]]
    chosen = "" if row["selector"] == layout.ANY else view.selector(row["selector"])
    ranges = [(s["protocol"], s["first_port"], s["last_port"], _entries(policies, view, s)) for s in spans]
    names = [(s["name"], s["last_port"], s["protocol"], _entries(policies, view, s)) for s in named]
    return (chosen, ranges, sorted(names))


def _entries(policies: Mapping[str, Any], view: View, span: Mapping[str, Any]) -> list[str]:
    numbers = policies["REFS"][span["first_ref"] :][: span["ref_count"]]
    return sorted(repr((policies["ENTRIES"][number]["precedence"], _entry(view, number))) for number in numbers)


def _entry(view: View, number: int) -> Any:
    entry = view.entry(number)
    http = None if entry.http is None else sorted((replace(rule, number=0) for rule in entry.http), key=repr)
    return replace(entry, number=0, selector=None, http=None), http
