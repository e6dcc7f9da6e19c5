# SPDX-License-Identifier: Apache-2.0
"""What happens when the service cannot answer: the request must be denied, soon, and with a plain status."""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.doctor.config.finding import Finding, check, error, warning
from ext_authz.doctor.config.node import Node
from ext_authz.doctor.config.view import Door, Kind, Manager, View

_GRPC = (Kind.EXT_AUTHZ, Kind.EXT_PROC)
_LONG_S, _SHORT_S = 10.0, 0.05
_DEFAULT_S = 0.2


def is_http(door: Door) -> bool:
    return "filters.http." in door.filter.type


@check
def failure_mode_allow(view: View) -> Iterator[Finding]:
    for door in view.doors_of(*_GRPC):
        found = door.config.get("failure_mode_allow")
        if found.on and not door.config.get("observability_mode").on:
            what = "failure_mode_allow is true"
            why = "while the service is away or slow everything passes unjudged: an overload suffices"
            yield error("failure-mode-allow", found, what, why, "set failure_mode_allow: false")


@check
def status_on_error(view: View) -> Iterator[Finding]:
    for door in view.doors_of(*_GRPC):
        if not is_http(door):
            continue
        found = door.config.get("status_on_error")
        default = 403 if door.kind == Kind.EXT_AUTHZ else 500
        code = _code(found.get("code"))
        if code is None:
            what = f"status_on_error is missing: Envoy answers {default}"
            why = "what a denial for want of an answer looks like should not be left to a default"
            yield warning("status-on-error", found, what, why, "set status_on_error: {code: Forbidden}")
        elif code < 400:
            what = f"status_on_error is {found.get('code').value}"
            yield error("status-on-error", found, what, "clients take a failure for success", "set code: Forbidden")


def _code(node: Node) -> int | None:
    if node.number is not None:
        return int(node.number)
    if not node.text:
        return None
    return _NAMES.get(node.text, 500)


_NAMES = {"Empty": 0, "Continue": 100, "OK": 200, "Created": 201, "Accepted": 202, "NoContent": 204, "Found": 302}


# ---- time-outs ----


@check
def timeouts(view: View) -> Iterator[Finding]:
    for door in view.doors_of(*_GRPC):
        if door.kind == Kind.EXT_AUTHZ:
            yield from _timeout(door.service.get("timeout"), "grpc_service.timeout")
        elif not door.config.get("observability_mode").on:
            yield from _timeout(door.config.get("message_timeout"), "message_timeout")
            yield from _stream_timeout(door.service.get("timeout"))


@check
def route_timeouts(view: View) -> Iterator[Finding]:
    """Time-outs of services that a route asks instead."""
    for routes in view.routes:
        for name, node in routes.walk():
            service = node.get("grpc_service")
            if name in ("check_settings", "checkSettings") and service:
                yield from _timeout(service.get("timeout"), "grpc_service.timeout")


def _timeout(node: Node, name: str) -> Iterator[Finding]:
    value = node.seconds
    if value is None:
        what = f"{name} is missing: Envoy waits {_DEFAULT_S:g} s" if not node else f"{name} is no duration like 2s"
        why = "a busy node takes longer at times, and every answer that comes later is a denial"
        yield warning("timeout", node, what, why, f"set {name}: 2s")
    elif value == 0:
        what = f"{name} is 0"
        why = "ext_authz then waits forever for a dead service, and ext_proc not at all"
        yield error("timeout", node, what, why, f"set {name}: 2s")
    elif value > _LONG_S:
        what, why = f"{name} is {value:g} s", "a dead service holds every request for so long"
        yield warning("timeout", node, what, why, f"set {name}: 2s")
    elif value < _SHORT_S:
        what, why = f"{name} is {value:g} s", "a busy node takes longer at times, and what comes later is a denial"
        yield warning("timeout", node, what, why, f"set {name}: 2s")


def _stream_timeout(node: Node) -> Iterator[Finding]:
    if node.seconds:
        what = f"grpc_service.timeout is {node.seconds:g} s"
        why = "the stream to ext_proc lives as long as its request: longer ones are cut off then"
        yield warning("timeout", node, what, why, "leave it out; message_timeout bounds each answer")


@check
def request_timeout(view: View) -> Iterator[Finding]:
    """The manager's time-out for whole requests, against the doors'."""
    for manager in view.managers:
        whole = manager.node.get("request_timeout").seconds
        longest = max((_waits(door) for door in manager.chain.doors), default=0.0)
        if whole and whole <= longest:
            what = f"request_timeout is {whole:g} s, the door may wait {longest:g} s"
            why = "clients read 408 before the door has answered"
            yield warning("timeout", manager.node.get("request_timeout"), what, why, "make it longer than the door's")


def _waits(door: Door) -> float:
    if door.kind == Kind.MODULE:
        return 0.0
    node = door.service.get("timeout") if door.kind == Kind.EXT_AUTHZ else door.config.get("message_timeout")
    return _DEFAULT_S if node.seconds is None else node.seconds


@check
def local_replies(view: View) -> Iterator[Finding]:
    for manager in view.managers:
        for mapper in _mappers(manager):
            code = mapper.get("status_code").number
            if manager.chain.doors and code is not None and code < 400:
                what = f"local_reply_config makes {mapper.get('status_code').value} of what Envoy answers itself"
                why = "denials are such answers: clients take them for success"
                remedy = "keep the status of denials (403) as it is"
                yield warning("local-reply", mapper.get("status_code"), what, why, remedy)


def _mappers(manager: Manager) -> tuple[Node, ...]:
    return manager.node.get("local_reply_config", "mappers").items
