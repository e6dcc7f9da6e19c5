# SPDX-License-Identifier: Apache-2.0
"""What filters ask of a flow, whether it was just formatted or is read back from a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple


class End(NamedTuple):
    """One end of a flow. `json` is Hubble's Endpoint message."""

    identity: int
    namespace: str = ""
    pod: str = ""  # without its namespace
    labels: tuple[str, ...] = ()
    json: str = ""


class Facts(NamedTuple):
    """status 0: none. ports: of source and destination. path: as shown, so what is redacted cannot be searched."""

    verdict: str
    source: End
    destination: End
    ports: tuple[int, int]
    path: str
    status: int
    uuid: str
    drop_reason: str
    method: str
    door: str


class Seen(NamedTuple):
    """A flow as it is written, and what can be asked of it."""

    line: str
    facts: Facts


def read_line(text: str) -> Seen:
    """
    Read back one line of the exporter's form.

    Raises:
        ValueError: It is none.
    """
    event = json.loads(text)
    flow = _map(event).get("flow")
    if not isinstance(flow, dict):
        raise ValueError("a line without a flow")
    return Seen(text, facts_of(flow))


def facts_of(flow: Mapping[str, Any]) -> Facts:
    """Facts of a flow in JSON; what is missing or of another kind is empty."""
    http = _map(_map(flow.get("l7")).get("http"))
    l4 = next((part for part in _map(flow.get("l4")).values() if isinstance(part, dict)), {})
    extensions = _map(_map(flow.get("extensions")).get("value"))
    return Facts(
        verdict=_text(flow.get("verdict")),
        source=_end(_map(flow.get("source"))),
        destination=_end(_map(flow.get("destination"))),
        ports=(_number(l4.get("source_port")), _number(l4.get("destination_port"))),
        path=url_path(_text(http.get("url"))),
        status=_number(http.get("code")),
        uuid=_text(flow.get("uuid")),
        drop_reason=_text(flow.get("drop_reason_desc")),
        method=_text(http.get("method")),
        door=_text(extensions.get("door")),
    )


def url_path(url: str) -> str:
    """Path and query of scheme://host/path."""
    rest = url.partition("://")[2] or url
    slash = rest.find("/")
    return rest[slash:] if slash >= 0 else ""


def _end(endpoint: Mapping[str, Any]) -> End:
    labels = endpoint.get("labels")
    return End(
        _number(endpoint.get("identity")),
        _text(endpoint.get("namespace")),
        _text(endpoint.get("pod_name")),
        tuple(str(label) for label in labels) if isinstance(labels, list) else (),
    )


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
