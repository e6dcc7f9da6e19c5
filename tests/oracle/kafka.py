# SPDX-License-Identifier: Apache-2.0
"""Kafka requests against Kafka rules (section 14)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ROLES = {"produce": {0, 3, 18}, "consume": {1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 18}}
KEY_NAMES = """
    produce fetch offsets metadata leaderandisr stopreplica updatemetadata controlledshutdown offsetcommit
    offsetfetch findcoordinator joingroup heartbeat leavegroup syncgroup describegroups listgroups saslhandshake
    apiversions createtopics deletetopics deleterecords initproducerid offsetforleaderepoch addpartitionstotxn
    addoffsetstotxn endtxn writetxnmarkers txnoffsetcommit describeacls createacls deleteacls describeconfigs
    alterconfigs
"""
KEYS = {name: number for number, name in enumerate(KEY_NAMES.split())}
WITH_TOPICS = {0, 1, 2, 3, 4, 5, 6, 8, 9, 19, 20, 21, 23, 24, 27, 28, 34, 35, 37}


def keys_of(rule: Mapping[str, Any]) -> set[int] | None:
    if rule.get("role"):
        return ROLES[rule["role"].lower()]
    if rule.get("apiKey"):
        return {KEYS[rule["apiKey"].lower()]}
    return None


def fits(rule: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Everything but the topic."""
    keys = keys_of(rule)
    if keys is not None and request["api_key"] not in keys:
        return False
    if rule.get("apiVersion") and int(rule["apiVersion"]) != request["api_version"]:
        return False
    return not rule.get("clientID") or rule["clientID"] == request.get("client_id", "")


def allowed(rules: Iterable[Mapping[str, Any]], request: Mapping[str, Any]) -> bool:
    """Every topic of the request is covered by some rule that fits it."""
    left = set(request.get("topics") or [])
    for rule in rules:
        if not fits(rule, request):
            continue
        if not rule.get("topic") or request["api_key"] not in WITH_TOPICS:
            return True
        if rule["topic"] in left:
            left.discard(rule["topic"])
            if not left:
                return True
    return False
