# SPDX-License-Identifier: Apache-2.0
"""HTTP requests against HTTP rules, and what header actions do to them (section 11)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import re2

Headers = dict[str, str]


@functools.cache
def compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def full(pattern: str | None, text: str) -> bool:
    return not pattern or compiled(pattern).fullmatch(text) is not None


def resolved(path: str) -> str:
    """The path as the proxy leaves it: escaped slashes and dots in the clear, dot segments and empty ones gone."""
    path, mark, query = path.partition("?")
    for escaped, plain in (("%2f", "/"), ("%5c", "/"), ("%2e", ".")):
        path = path.replace(escaped, plain).replace(escaped.upper(), plain)
    kept: list[str] = []
    pieces = path.replace("\\", "/").split("/")[1:]
    for piece in pieces:
        if piece == "..":
            del kept[-1:]
        elif piece not in ("", "."):
            kept.append(piece)
    folder = bool(kept) and pieces[-1] in ("", ".", "..")
    return "/" + "/".join(kept) + "/" * folder + mark + query


def joined(headers: Mapping[str, Any] | None) -> Headers:
    """Lower-case names; several lines of one header joined by commas."""
    found: Headers = {}
    for name, value in (headers or {}).items():
        lines = [str(v) for v in value] if isinstance(value, list) else [str(value)]
        key = name.lower()
        found[key] = ",".join([found[key], *lines] if key in found else lines)
    return found


def plain_condition(line: str, headers: Headers) -> bool:
    """One line of `headers`: with a space "Name: value", else the name alone."""
    name, space, value = line.partition(" ")
    if not space:
        return line.lower() in headers
    return headers.get(name.rstrip(":").lower()) == value


def wanted_value(match: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]]) -> tuple[bool, str | None]:
    """(known, value): value None is a presence test; not known: the rule never matches."""
    if secret := match.get("secret"):
        content = secrets.get(f"{secret.get('namespace', '')}/{secret['name']}")
        if content is not None and len(content) == 1:
            return True, str(next(iter(content.values())))
        return bool(match.get("value")), match.get("value")
    return True, match.get("value") or None


def condition(match: Mapping[str, Any], headers: Headers, secrets: Mapping[str, Mapping[str, str]]) -> bool:
    known, value = wanted_value(match, secrets)
    if not known:
        return False
    if match.get("mismatch"):
        return True
    seen = headers.get(match["name"].lower())
    return seen is not None if value is None else seen == value


def act(match: Mapping[str, Any], headers: Headers, secrets: Mapping[str, Mapping[str, str]]) -> None:
    name, (_, value) = match["name"].lower(), wanted_value(match, secrets)
    action, seen = match.get("mismatch"), headers.get(name)
    if seen == value if value is not None else seen is not None:
        return
    if action == "ADD":
        headers[name] = value or "" if seen is None else f"{seen},{value}"
    elif action == "REPLACE":
        headers[name] = value or ""
    elif action == "DELETE" and value is not None:
        headers.pop(name, None)


def rule_matches(rule: Mapping[str, Any], request: Mapping[str, Any], headers: Headers, secrets: Any) -> bool:
    return (
        full(rule.get("method"), request["method"])
        and full(rule.get("path"), resolved(request["path"]))
        and full(rule.get("host"), request.get("host", ""))
        and all(plain_condition(line, headers) for line in rule.get("headers") or [])
        and all(condition(match, headers, secrets) for match in rule.get("headerMatches") or [])
    )


def judge(rules: list[Mapping[str, Any]], request: Mapping[str, Any], secrets: Any) -> tuple[bool, Headers, Headers]:
    """
    (allowed, headers as sent, headers as passed on). All rules run, in order; one that matches allows.

    The same change asked for by two rules is made once (where Cilium would add a value twice).
    """
    before = joined(request.get("headers"))
    after, allowed = dict(before), False
    done: list[Mapping[str, Any]] = []
    for rule in rules:
        if rule_matches(rule, request, after, secrets):
            allowed = True
            for match in rule.get("headerMatches") or []:
                if match not in done:
                    act(match, after, secrets)
                    done.append(match)
    return allowed, before, after


def changes(before: Headers, after: Headers) -> dict[str, Any]:
    """As a probe states them; empty where nothing changed. Names are lower case."""
    put = {name: value for name, value in after.items() if before.get(name) != value}
    removed = sorted(set(before) - set(after))
    return ({"set": put} if put else {}) | ({"removed": removed} if removed else {})
