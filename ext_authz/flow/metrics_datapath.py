# SPDX-License-Identifier: Apache-2.0
"""What the kernel's programs counted, as the data path's process wrote it down: packets, maps, lost events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ext_authz.flow.shape import DROP_REASONS
from ext_authz.state import State, read_json

_MAPS_MAX = 64


class DatapathMetrics(Collector):
    """Nothing where there is no data path."""

    def __init__(self, state: State) -> None:
        self._page = state.datapath / "page.json"

    def collect(self) -> Iterator[Any]:
        page = read_json(self._page)
        if not isinstance(page, dict):
            return
        yield from _packets(page)
        yield from _maps(page)
        yield GaugeMetricFamily(
            "idmesh_datapath_generation",
            "Rises with each revision in the kernel.",
            value=_number(page.get("generation")),
        )
        attached = page.get("attached")
        count = len(attached) if isinstance(attached, list) else 0
        yield GaugeMetricFamily("idmesh_datapath_attached", "Endpoints attached to this host.", value=count)
        yield CounterMetricFamily(
            "idmesh_datapath_events_lost", "Events that found no room.", value=_number(page.get("events_lost"))
        )


def _packets(page: dict[str, Any]) -> Iterator[Any]:
    packets = page.get("packets")
    if not isinstance(packets, dict):
        return
    yield CounterMetricFamily("idmesh_datapath_passed_packets", "Let pass.", value=_number(packets.get("passed")))
    dropped = CounterMetricFamily("idmesh_datapath_dropped_packets", "Dropped.", labels=("reason", "direction"))
    reasons = packets.get("dropped")
    for number, sides in reasons.items() if isinstance(reasons, dict) else ():
        reason = DROP_REASONS.get(int(number), "DROP_REASON_UNKNOWN") if str(number).isdigit() else ""
        for side in ("ingress", "egress"):
            if reason and isinstance(sides, dict) and side in sides:
                dropped.add_metric((reason, side), _number(sides[side]))
    yield dropped


def _maps(page: dict[str, Any]) -> Iterator[Any]:
    rows = GaugeMetricFamily("idmesh_datapath_map_rows", "Rows of a map.", labels=("map",))
    limit = GaugeMetricFamily("idmesh_datapath_map_rows_max", "Rows it has room for.", labels=("map",))
    size = GaugeMetricFamily("idmesh_datapath_map_bytes", "The kernel's memory for it.", labels=("map",))
    maps = page.get("maps")
    for one in (maps if isinstance(maps, list) else [])[:_MAPS_MAX]:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            continue
        key = (one["name"],)
        limit.add_metric(key, _number(one.get("limit")))
        size.add_metric(key, _number(one.get("bytes")))
        if one.get("rows") is not None:
            rows.add_metric(key, _number(one["rows"]))
    yield from (rows, limit, size)


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
