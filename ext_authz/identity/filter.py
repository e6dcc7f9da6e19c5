# SPDX-License-Identifier: Apache-2.0
"""
Which labels make an identity: everything but what changes from replica to replica.

A rule is a regular expression at the start of the key, with "!" in front to leave out, and a source in front
("reserved:.*") to mean that source only. The longest including match beats the shortest excluding one.

Source: reference policy-semantics section 4; Cilium's label filter has the same list and order of precedence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ext_authz.identity.labels import Label

DEFAULT_RULES: tuple[str, ...] = (
    "reserved:.*",
    r"io\.kubernetes\.pod\.namespace",
    r"io\.cilium\.k8s\.namespace\.labels",
    r"io\.cilium\.k8s\.policy\.cluster",
    r"io\.cilium\.k8s\.policy\.serviceaccount",
    r"app\.kubernetes\.io",
    r"!io\.kubernetes",
    r"!kubernetes\.io",
    r"!statefulset\.kubernetes\.io/pod-name",
    r"!apps\.kubernetes\.io/pod-index",
    r"!batch\.kubernetes\.io/job-completion-index",
    r"!batch\.kubernetes\.io/controller-uid",
    r"!.*beta\.kubernetes\.io",
    r"!k8s\.io",
    "!pod-template-generation",
    "!pod-template-hash",
    "!controller-revision-hash",
    "!annotation.*",
    "!controller-uid",
    "!etcd_node",
    r"!topology\.kubernetes\.io",
)


@dataclass(frozen=True, slots=True)
class _Rule:
    source: str
    expression: re.Pattern[str]
    include: bool


def _parse(text: str) -> _Rule:
    include = not text.startswith("!")
    source, colon, rest = text.removeprefix("!").partition(":")
    return _Rule(source if colon else "", re.compile(rest if colon else source), include)


class IdentityLabelFilter:
    """Decides label by label; answers are kept, for the same few thousand labels come again and again."""

    def __init__(self, rules: Sequence[str] = DEFAULT_RULES) -> None:
        self._rules = [_parse(rule) for rule in rules]
        self._known: dict[tuple[str, str], bool] = {}

    def keeps(self, label: Label) -> bool:
        """True if the label is part of the identity."""
        known = self._known.get((label.source, label.key))
        if known is None:
            known = self._known[label.source, label.key] = self._decide(label)
        return known

    def _decide(self, label: Label) -> bool:
        included, ignored = 0, None
        for rule in self._rules:
            if rule.source and rule.source != label.source:
                continue
            match = rule.expression.match(label.key)
            if match is None:
                continue
            if rule.include:
                included = max(included, match.end())
            else:
                ignored = match.end() if ignored is None else min(ignored, match.end())
        return ignored is None or included > ignored

    def apply(self, labels: Iterable[Label]) -> list[Label]:
        return [label for label in labels if self.keeps(label)]
