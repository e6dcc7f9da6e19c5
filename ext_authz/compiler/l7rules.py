# SPDX-License-Identifier: Apache-2.0
"""
L7 rules as written, turned into what the packing half compiles: secrets looked up, patterns as expressions.

Source: reference policy-semantics sections 11 to 14.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ext_authz.compiler import patterns
from ext_authz.compiler.entries import HeaderPredicate, HttpMatch, KafkaMatch, RuleOrigin
from ext_authz.engine.types import Mismatch
from ext_authz.model.types import DnsRule, HeaderMatch, HttpRule, KafkaRule, Secret, SecretRef

Secrets = Mapping[tuple[str, str], Secret]

_MISMATCH = {
    None: Mismatch.FAIL,
    "LOG": Mismatch.LOG,
    "ADD": Mismatch.ADD,
    "DELETE": Mismatch.DELETE,
    "REPLACE": Mismatch.REPLACE,
}


def http_matches(rules: Iterable[HttpRule], origin: RuleOrigin, secrets: Secrets) -> tuple[HttpMatch, ...]:
    """The rules in order, repetitions left out."""
    found: dict[object, HttpMatch] = {}
    for index, rule in enumerate(rules):
        made = _http_match(rule, _http_origin(rule, origin, index), secrets)
        found.setdefault(http_key(made), made)
    return tuple(found.values())


def http_key(match: HttpMatch) -> object:
    """What makes two HTTP rules the same rule: all but where they stand."""
    return match.method, match.path, match.host, match.headers


def match_all(origin: RuleOrigin) -> HttpMatch:
    """A rule every request fits."""
    return HttpMatch(method="", path="", host="", headers=(), origin=origin)


def _http_match(rule: HttpRule, origin: RuleOrigin, secrets: Secrets) -> HttpMatch:
    headers = tuple(_predicate(header, secrets) for header in rule.headers)
    return HttpMatch(rule.method or "", rule.path or "", rule.host or "", headers, origin)


def _http_origin(rule: HttpRule, origin: RuleOrigin, index: int) -> RuleOrigin:
    path = f"{origin.path}.rules.http[{index}]"
    if rule.origin is None:
        return replace(origin, path=path)
    return replace(origin, path=path, file=rule.origin.file, line=rule.origin.line, column=rule.origin.column)


def _predicate(header: HeaderMatch, secrets: Secrets) -> HeaderPredicate:
    name, mismatch = header.name.lower(), _MISMATCH[header.mismatch]
    if header.secret is not None:
        value = secret_value(header.secret, secrets)
        if value is not None:
            return HeaderPredicate(name, value, mismatch=mismatch, secret=True)
        if header.value is None:
            return HeaderPredicate(name, "", mismatch=mismatch, secret=True, never=True)
    if header.value is None:
        return HeaderPredicate(name, "", present=True, mismatch=mismatch)
    return HeaderPredicate(name, header.value, mismatch=mismatch)


def secret_value(ref: SecretRef, secrets: Secrets) -> str | None:
    """The one value of a secret; None if it is missing, holds more or fewer keys, or is no text."""
    secret = secrets.get((ref.namespace, ref.name))
    if secret is None or len(secret.data) != 1:
        return None
    (value,) = secret.data.values()
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def dns_expressions(rules: Iterable[DnsRule]) -> tuple[str, ...] | None:
    """Expressions over names, None where some rule is every name."""
    found: dict[str, None] = {}
    for rule in rules:
        if rule.match_name is not None:
            found[patterns.dns_name_expression(rule.match_name)] = None
        elif rule.match_pattern is not None:
            if patterns.is_all_names(rule.match_pattern):
                return None
            found[patterns.dns_pattern_expression(rule.match_pattern)] = None
    return tuple(found)


def kafka_matches(rules: Iterable[KafkaRule], origin: RuleOrigin) -> tuple[KafkaMatch, ...]:
    return tuple(
        KafkaMatch(rule, replace(origin, path=f"{origin.path}.rules.kafka[{index}]"))
        for index, rule in enumerate(rules)
    )


def sni_expressions(names: Iterable[str]) -> tuple[str, ...] | None:
    """Expressions over server names, None where none is asked for."""
    return tuple(dict.fromkeys(patterns.sni_expression(name) for name in names)) or None
