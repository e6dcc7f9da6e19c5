# SPDX-License-Identifier: Apache-2.0
"""
Cilium's name patterns as RE2 expressions.

DNS names are matched lower-case with a trailing dot, server names lower-case without one. Both translations are
exact: what the pattern does not say never matches.

Source: reference policy-semantics sections 7 (matchName, matchPattern) and 12 (serverNames).
"""

from __future__ import annotations

import re
from collections.abc import Callable

_DNS_CHARS = "[-a-z0-9_]"
_SNI_CHARS = "[-a-z0-9_]"
_STARS = re.compile(r"\*+")


def dns_name(name: str) -> str:
    """A name as the DNS proxy compares it: lower case, trailing dot."""
    return name.lower().rstrip(".") + "."


def dns_name_expression(name: str) -> str:
    """matchName: this very name."""
    return quote(dns_name(name))


def is_all_names(pattern: str) -> bool:
    """True for a matchPattern of stars only."""
    stripped = pattern.rstrip(".")
    return bool(stripped) and not stripped.strip("*")


def dns_pattern_expression(pattern: str) -> str:
    """
    matchPattern: `*` is zero or more characters inside a label, a leading `**.` one or more whole labels, `**`
    elsewhere is `*`, and stars alone are every name.
    """
    if is_all_names(pattern):
        return ".*"
    text = dns_name(pattern.strip())
    head = ""
    if text.startswith("**."):
        head = rf"(?:{_DNS_CHARS}+\.)+"
        text = text[3:]
    return head + f"{_DNS_CHARS}*".join(quote(part) for part in _STARS.split(text))


def sni_expression(pattern: str) -> str:
    """
    serverNames: `*` is zero or more characters inside a label, `**` one or more labels, a lone `*` any name that is
    not empty; longer runs of stars count as `**`.
    """
    text = pattern.lower().removesuffix(".")
    if text == "*":
        return ".+"
    parts = []
    position = 0
    for run in _STARS.finditer(text):
        parts.append(quote(text[position : run.start()]))
        parts.append(f"{_SNI_CHARS}*" if len(run.group()) == 1 else rf"{_SNI_CHARS}+(?:\.{_SNI_CHARS}+)*")
        position = run.end()
    return "".join(parts) + quote(text[position:])


_SPECIAL = frozenset("\\.+*?()|[]{}^$")


def quote(text: str) -> str:
    """A literal for RE2."""
    return "".join("\\" + char if char in _SPECIAL else char for char in text)


def name_matcher(pattern: str) -> Callable[[str], bool]:
    """
    Tests full lower-case names with trailing dot against a matchName or matchPattern.

    Only for learned names, on the control path; a name without star fits itself alone.
    """
    if "*" not in pattern:
        return dns_name(pattern).__eq__
    expression = re.compile(dns_pattern_expression(pattern))
    return lambda name: expression.fullmatch(name) is not None
