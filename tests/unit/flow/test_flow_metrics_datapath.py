# SPDX-License-Identifier: Apache-2.0
"""The data path's metrics: from a page that may be missing, or hold anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ext_authz.flow.metrics_datapath import DatapathMetrics
from ext_authz.state import State, write_json


def text(tmp_path: Path, page: Any) -> str:
    state = State(tmp_path)
    state.datapath.mkdir(exist_ok=True)
    if page is not None:
        write_json(state.datapath / "page.json", page)
    registry = CollectorRegistry()
    registry.register(DatapathMetrics(state))
    return generate_latest(registry).decode()


def test_without_a_data_path_there_is_nothing(tmp_path: Path) -> None:
    assert text(tmp_path, None) == ""


def test_packets_maps_and_losses_are_told(tmp_path: Path) -> None:
    maps = [{"name": "spans", "rows": 3, "limit": 10, "bytes": 80}, {"name": "connections", "rows": None, "limit": 5}]
    packets = {"passed": 7, "dropped": {"133": {"ingress": 2}, "130": {"egress": 1}}}
    said = text(tmp_path, {"packets": packets, "maps": maps, "events_lost": 4, "generation": 2, "attached": [{}]})
    for line in (
        "idmesh_datapath_passed_packets_total 7.0",
        'idmesh_datapath_dropped_packets_total{direction="ingress",reason="POLICY_DENIED"} 2.0',
        'idmesh_datapath_dropped_packets_total{direction="egress",reason="INVALID_SOURCE_MAC"} 1.0',
        'idmesh_datapath_map_rows{map="spans"} 3.0',
        'idmesh_datapath_map_rows_max{map="connections"} 5.0',
        "idmesh_datapath_events_lost_total 4.0",
        "idmesh_datapath_attached 1.0",
    ):
        assert line in said
    assert 'map_rows{map="connections"}' not in said


@pytest.mark.parametrize(
    "page",
    [
        [],
        {"packets": 1},
        {"maps": {}},
        {"maps": [1, {"name": 2}], "packets": {"dropped": []}},
        {"packets": {"dropped": {"x": {}, "133": 5}}},
    ],
)
def test_a_page_of_another_shape_breaks_nothing(page: Any, tmp_path: Path) -> None:
    text(tmp_path, page)
