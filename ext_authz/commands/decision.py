# SPDX-License-Identifier: Apache-2.0
"""
A recorded flow as `idmesh explain --decision ID` asks about it: found by its id, and turned back into a question.

Identity numbers of another snapshot mean nothing here: ends are found by name, then by labels, then by address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ext_authz.cli import Failure
from ext_authz.commands.reading import read_service
from ext_authz.engine.types import Direction, Flow, Http
from ext_authz.explain import End, UnknownEnd, View, find_end
from ext_authz.flow.facts import read_line, url_path
from ext_authz.flow.sink import read_rotated
from ext_authz.flow.text import REDACTED
from ext_authz.identity.reserved import NAMES
from ext_authz.pb.idmesh.v1 import node_pb2

_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMPv4": 1, "ICMPv6": 58}
_ALL = 1 << 62
_END = 4  # event_type of a connection's end


@dataclass(slots=True)
class Recorded:
    """A flow line, as it was decided: source is who asked."""

    flow: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def extensions(self) -> Mapping[str, Any]:
        return _map(_map(self.flow.get("extensions")).get("value"))

    @property
    def passed(self) -> bool:
        """True if the flow was let through, be it because nothing was enforced."""
        return self.flow.get("verdict") not in ("DROPPED", "ERROR")

    def text(self) -> str:
        """Verdict, rule, revision and door, for people."""
        own = self.extensions
        reason = self.flow.get("drop_reason_desc") or own.get("audited")
        verdict = f"{self.flow.get('verdict')}{f' ({reason})' if reason else ''}"
        rule = f" by {own['rule']}" if own.get("rule") else ""
        return f"{verdict}{rule}, revision {own.get('revision')}, {own.get('door')}, {self.flow.get('time')}"


def find_decision(uuid: str, state: Path | None, file: Path | None) -> Recorded:
    """
    The request or connection with this decision id, from a file of flow lines or from the node.

    Raises:
        Failure: There is none, or nobody to ask.
    """
    wanted = uuid.replace("-", "").lower()
    flows = _from_file(wanted, file) if file is not None else _from_node(wanted, state)
    asked = [flow for flow in flows if not flow.get("is_reply") and _map(flow.get("event_type")).get("type") != _END]
    if asked:
        return Recorded(asked[0])
    where = str(file) if file is not None else "the node's newest flows (older ones are in its file: --file)"
    only = "; only its end is there, which does not say enough" if flows else ""
    raise Failure(f"--decision {uuid}: no such flow in {where}{only}")


def _from_node(uuid: str, state: Path | None) -> list[Mapping[str, Any]]:
    request = node_pb2.GetFlowsRequest(last=_ALL, whitelist=[node_pb2.FlowFilter(uuid=[uuid])])
    with read_service(state) as service:
        return [json.loads(reply.line)["flow"] for reply in service.GetFlows(request) if reply.line]


def _from_file(uuid: str, file: Path) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for line in read_rotated(file):
        if uuid not in line:
            continue
        try:
            seen = read_line(line)
        except ValueError:
            continue
        if seen.facts.uuid == uuid:
            found.append(json.loads(line)["flow"])
    return found


def facts_of(recorded: Recorded) -> Flow:
    """
    Everything of the flow but its ends and direction.

    Raises:
        Failure: The line does not say enough.
    """
    flow = recorded.flow
    name, l4 = next(((name, part) for name, part in _map(flow.get("l4")).items() if isinstance(part, dict)), ("", {}))
    if name not in _PROTOCOLS:
        raise Failure("the recorded flow has no protocol that policies know")
    port = l4.get("type" if name.startswith("ICMP") else "destination_port") or 0
    own = recorded.extensions
    return Flow(
        direction=Direction.INGRESS,
        peer=0,
        protocol=_PROTOCOLS[name],
        port=int(port),
        http=_http(recorded),
        sni=own.get("sni"),
        raw_path=True,
    )


def _http(recorded: Recorded) -> Http | None:
    http = _map(_map(recorded.flow.get("l7")).get("http"))
    if not http:
        return None
    url = str(http.get("url") or "")
    path = url_path(url) if "://" in url else url
    for mark in "?#":
        if path.endswith(f"{mark}{REDACTED}"):
            path = path[: -len(REDACTED) - 1]
            recorded.notes.append(
                "the query was redacted: it is asked without, and rules that read it may say otherwise"
            )
    headers = []
    for header in http.get("headers") or ():
        key, value = str(_map(header).get("key") or ""), str(_map(header).get("value") or "")
        if REDACTED in value:
            recorded.notes.append(f"header {key} was redacted: rules that read its value may say otherwise")
        headers.append((key, value))
    if recorded.extensions.get("truncated"):
        recorded.notes.append("the record was cut: what is missing may have mattered")
    host = url.partition("://")[2].partition("/")[0]
    return Http(str(http.get("method") or ""), path, host, tuple(headers))


def find_recorded_end(view: View, recorded: Recorded, which: str) -> End:
    """
    The snapshot's own end for the recorded "source" or "destination".

    Raises:
        Failure: These policies know nothing like it.
    """
    end = _map(recorded.flow.get(which))
    address = str(_map(recorded.flow.get("IP")).get(which) or "")
    labels = {str(label) for label in end.get("labels") or ()}
    name = f"{end.get('namespace') or ''}/{end.get('pod_name') or ''}"
    if end.get("pod_name") and name in view.engine.endpoints:
        found = find_end(view, name)
        now = set(view.labels(found.identity) or ())
        if labels and now != labels:
            recorded.notes.append(f"{name} has other labels now")
        return found
    by_labels = _by_labels(view, labels)
    if by_labels is not None:
        return by_labels
    if not address:
        raise Failure(f"the {which} of the recorded flow ({name}) is not in these files, and it has no address")
    try:
        found = find_end(view, address)
    except UnknownEnd as error:
        raise Failure(str(error)) from None
    if labels:
        recorded.notes.append(
            f"the {which} is not in these files: asked about its address, which they may know otherwise"
        )
    return found


def _by_labels(view: View, labels: set[str]) -> End | None:
    """A reserved identity by its name, else any endpoint with exactly these labels."""
    if not labels:
        return None
    for label in labels:
        reserved = label.removeprefix("reserved:")
        if reserved != label and reserved in NAMES and len(labels) == 1:
            return find_end(view, reserved)
    for name, index in view.engine.endpoints.items():
        if set(view.labels(view.endpoint(index).identity) or ()) == labels:
            return find_end(view, name)
    return None


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
