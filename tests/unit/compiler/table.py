# SPDX-License-Identifier: Apache-2.0
"""Small worlds for tests: the table's base fixtures with policies written in place."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ext_authz.casefile import Case, Document, read
from ext_authz.compiler.resolve import resolve
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.types import World
from ext_authz.play.world import build
from tests.unit.compiler.slow import Slow

TABLE = Path(__file__).parents[2] / "cases" / "policy.yaml"


@cache
def _base() -> Case:
    return read(TABLE).cases[0]


def policy(spec: str, kind: str = "CiliumNetworkPolicy", name: str = "p", namespace: str = "default") -> str:
    """One policy; the spec is YAML in flow style."""
    version = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "cilium.io/v2"
    place = "" if kind == "CiliumClusterwideNetworkPolicy" else f", namespace: {namespace}"
    return f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{place}}}\nspec: {spec}\n"


def clusterwide(spec: str, name: str = "p") -> str:
    return policy(spec, "CiliumClusterwideNetworkPolicy", name)


def world(*documents: str, settings: dict[str, Any] | None = None, **fixtures: Any) -> World:
    """The base world with these policies; fixtures are added key by key."""
    base = _base()
    merged = {
        key: {**value, **fixtures.get(key, {})} if isinstance(value, dict) else [*value, *fixtures.get(key, [])]
        for key, value in base.fixtures.items()
    }
    case = Case(
        "test",
        "test.yaml",
        merged,
        {**base.settings, **(settings or {})},
        tuple(Document(text, yaml.safe_load(text)) for text in documents),
        (),
    )
    built = build(case)
    assert not built.errors, built.errors
    return built.world


def play(subject: World) -> Slow:
    return Slow(resolve(subject, MemoryAllocator()))


def verdict(slow: Slow, source: str, target: str, way: str = "ingress", port: int = 80, **more: Any) -> str:
    """allow, redirect, or the drop reason, in one word."""
    got = slow.play({"from": source, "to": target, "dir": way, "port": port, "protocol": "TCP", **more})
    return str(got.get("drop", got["expect"]))
