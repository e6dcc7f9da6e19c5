# SPDX-License-Identifier: Apache-2.0
"""Why a flow was decided as it was, for people: the entry that won, those considered, and what a denied flow missed."""

from ext_authz.explain.miss import Miss, nearest_miss
from ext_authz.explain.sides import End, Side, UnknownEnd, explain, find_end
from ext_authz.explain.view import EntryView, HttpView, RuleView, View

__all__ = [
    "End",
    "EntryView",
    "HttpView",
    "Miss",
    "RuleView",
    "Side",
    "UnknownEnd",
    "View",
    "explain",
    "find_end",
    "nearest_miss",
]
