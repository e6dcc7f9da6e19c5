# SPDX-License-Identifier: Apache-2.0
"""Header changes as probes state them: what was set, as comma-joined view, and what was removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ext_authz.casefile import Raw

# What a proxy or an HTTP client adds of itself.
_OWN = (
    "x-request-id",
    "x-forwarded-proto",
    "x-forwarded-for",
    "x-envoy-",
    "host",
    "via",
    "content-length",
    "connection",
)


def lines_of(http: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The header lines of a probe's request."""
    return [
        (name, str(item))
        for name, value in (http.get("headers") or {}).items()
        for item in (value if isinstance(value, list) else [value])
    ]


def joined(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in lines:
        key = name.lower()
        found[key] = f"{found[key]},{value}" if key in found else value
    return found


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> Raw:
    """Empty where nothing changed; names are lower case."""
    put = {name: value for name, value in after.items() if before.get(name) != value}
    removed = sorted(before.keys() - after.keys())
    return ({"set": put} if put else {}) | ({"removed": removed} if removed else {})


def changed(http: Mapping[str, Any], arrived: Iterable[tuple[str, str]]) -> Raw:
    """What the upstream got against what the client sent, without what a proxy adds of itself."""
    before, after = joined(lines_of(http)), joined(arrived)
    foreign = {name for name in after.keys() - before.keys() if name.startswith(_OWN)}
    return difference(before, {name: value for name, value in after.items() if name not in foreign})
