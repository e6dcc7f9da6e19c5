# SPDX-License-Identifier: Apache-2.0
"""
A flow on one line, as `hubble observe` shows it; of what did not simply pass also the rule and the decision's id.

    Nov 23 00:00:34.402: default/client:40000 (ID:256) -> default/server:80 (ID:258) http-request FORWARDED (HTTP/1.1 GET http://server/)
"""  # noqa: E501

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ext_authz.identity.reserved import NAMES
from ext_authz.logs import escape

_RESERVED = {number: name for name, number in NAMES.items()}
_MATCHES = {0: "none", 1: "L3-Only", 2: "L3-L4", 3: "L4-Only", 4: "all", 5: "L3-Proto", 6: "Proto-Only"}
_COLOURS = {"FORWARDED": "32", "REDIRECTED": "32", "DROPPED": "31", "ERROR": "31", "AUDIT": "33"}
# What a policy verdict is called.
_CONNECTIONS = {"FORWARDED": "ALLOWED", "REDIRECTED": "ALLOWED", "DROPPED": "DENIED", "AUDIT": "AUDITED"}


def compact(flow: Mapping[str, Any], colour: bool = False) -> str:
    """The flow as JSON gave it; safe for a terminal."""
    source, destination, arrow = _end(flow, "source"), _end(flow, "destination"), "->"
    if flow.get("is_reply"):
        source, destination, arrow = destination, source, "<-"
    verdict = str(flow.get("verdict") or "UNKNOWN")
    kind = _kind(flow)
    shown = _CONNECTIONS.get(verdict, verdict) if kind.startswith("policy-verdict") else verdict
    if colour:
        shown = f"\x1b[{_COLOURS.get(verdict, '0')}m{escape(shown)}\x1b[0m"
    else:
        shown = escape(shown)
    head = escape(f"{_time(flow)}: {source} {arrow} {destination} {kind}")
    return f"{head} {shown} ({escape(_summary(flow, verdict))})"


def _time(flow: Mapping[str, Any]) -> str:
    """Local time with milliseconds, as Hubble shows it."""
    text = str(flow.get("time") or "")
    try:
        # Nanoseconds are more than datetime reads.
        moment = datetime.fromisoformat(f"{text[:19]}+00:00").timestamp()
    except ValueError:
        return text or "N/A"
    return f"{time.strftime('%b %e %H:%M:%S', time.localtime(moment))}.{text[20:23] or '000'}"


def _end(flow: Mapping[str, Any], which: str) -> str:
    end = _map(flow.get(which))
    name = str(end.get("pod_name") or "")
    if name and end.get("namespace"):
        name = f"{end['namespace']}/{name}"
    name = name or str(_map(flow.get("IP")).get(which) or "?")
    l4 = next((part for part in _map(flow.get("l4")).values() if isinstance(part, dict)), {})
    port = l4.get(f"{which}_port")
    host = f"[{name}]" if ":" in name and port else name
    identity = end.get("identity") or 0
    known = _RESERVED.get(identity) if isinstance(identity, int) else None
    return f"{host}{f':{port}' if port else ''} ({known or f'ID:{identity}'})"


def _kind(flow: Mapping[str, Any]) -> str:
    l7 = _map(flow.get("l7"))
    if l7:
        protocol = next((name for name in ("http", "dns", "kafka") if name in l7), "l7")
        return f"{protocol}-{str(l7.get('type') or '').lower()}"
    if _map(flow.get("event_type")).get("type") == 5:
        match = _MATCHES.get(flow.get("policy_match_type") or 0, "unknown")
        return f"policy-verdict:{match} {flow.get('traffic_direction') or ''}".rstrip()
    if _map(flow.get("event_type")).get("type") == 1:
        return "drop"
    return str(flow.get("trace_observation_point") or "unknown").lower().replace("_", "-")


def _summary(flow: Mapping[str, Any], verdict: str) -> str:
    parts = [str(flow.get("Summary") or "")]
    if verdict in ("DROPPED", "ERROR", "AUDIT"):
        own = _map(_map(flow.get("extensions")).get("value"))
        reason = flow.get("drop_reason_desc") or own.get("audited")
        parts += [str(reason)] if reason else []
        parts += [f"rule {own['rule']}"] if own.get("rule") else []
        parts += ["not enforced"] if own.get("shadow") else []
        parts += [f"decision {flow.get('uuid')}"]
    return "; ".join(part for part in parts if part)


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
