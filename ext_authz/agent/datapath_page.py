# SPDX-License-Identifier: Apache-2.0
"""The data path's own page, STATE/datapath/page.json: what stands in the kernel, how full it is, what is amiss."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ext_authz.agent.attachments import Attachment
from ext_authz.agent.datapath_following import Following
from ext_authz.datapath import Counter, Datapath, MapInfo
from ext_authz.engine.types import Direction
from ext_authz.logs import event
from ext_authz.state import State, read_json, write_json

log = logging.getLogger(__name__)

# A map this full is told of before it refuses something.
_FULL = 0.9
_TYPES = {
    1: "hash",
    2: "array",
    6: "percpu array",
    9: "lru hash",
    10: "lru percpu hash",
    11: "lpm trie",
    15: "sockmap",
    18: "sockhash",
    24: "sk storage",
    27: "ring buffer",
}
_FORGETFUL = (9, 10)


@dataclass(frozen=True, slots=True)
class Packets:
    """As the programs counted them since they were first loaded. lost: events that found no room in the kernel."""

    passed: int
    dropped: int
    lost: int
    reasons: dict[str, dict[str, int]]  # drop reason to direction to packets


class Page:
    """Written when something in it has changed."""

    def __init__(self, state: State, kernel: Datapath) -> None:
        self._path = state.datapath / "page.json"
        self._kernel = kernel
        self._shown: dict[str, Any] = {}

    def packets(self) -> Packets:
        counters, lost = self._kernel.counters()
        return _sum(counters, lost)

    def write(
        self,
        following: Following,
        attached: list[Attachment],
        gone: Mapping[str, str],
        problems: list[str],
        proxy_port: int,
    ) -> None:
        """gone: why a workload is not there any more, by its endpoint's name."""
        maps = [_map(info) for info in self._kernel.maps()]
        packets = self.packets()
        page = {
            "pid": os.getpid(),
            "revision": following.revision,
            "generation": self._kernel.generation,
            "proxy_port": proxy_port,
            "maps": maps,
            "packets": {"passed": packets.passed, "dropped": packets.reasons},
            "events_lost": packets.lost,
            "attached": [_attached(one, gone.get(one.key, "")) for one in attached],
            "report": following.report,
            "warnings": [*_following(following), *_pressure(maps), *problems],
        }
        if page == self._shown:
            return
        try:
            write_json(self._path, {**page, "written": time.time()})
            self._shown = page
        except OSError as error:
            event(log, logging.WARNING, "cannot write the data path's page", reason=error)


def read_page(state: State) -> dict[str, Any]:
    """What was written last; empty: nothing yet."""
    found = read_json(state.datapath / "page.json")
    return found if isinstance(found, dict) else {}


def _sum(counters: Iterable[Counter], lost: int) -> Packets:
    passed = dropped = 0
    reasons: dict[str, dict[str, int]] = {}
    for counter in counters:
        if not counter.drop_reason:
            passed += counter.packets
            continue
        dropped += counter.packets
        side = Direction(counter.direction).name.lower()
        reasons.setdefault(str(counter.drop_reason), {})[side] = counter.packets
    return Packets(passed, dropped, lost, reasons)


def _map(info: MapInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "type": _TYPES.get(info.type, str(info.type)),
        "rows": info.rows,
        "limit": info.max_rows,
        "bytes": info.bytes,
        "forgets": info.type in _FORGETFUL,
    }


def _attached(attachment: Attachment, gone: str) -> dict[str, Any]:
    return {
        "endpoint": attachment.key,
        "addresses": list(attachment.addresses),
        "ifindex": attachment.ifindex,
        "cgroup": attachment.cgroup,
        "stage": str(attachment.stage),
        "gone": gone,
    }


def _following(following: Following) -> list[str]:
    if not following.problem:
        return []
    return [f"the kernel judges by revision {following.revision}, a newer one was refused: {following.problem}"]


def _pressure(maps: Iterable[dict[str, Any]]) -> list[str]:
    """Of what refuses when it is full; an LRU map forgets instead, and asks the policy again."""
    full = [one for one in maps if one["rows"] is not None and not one["forgets"] and one["limit"]]
    return [
        f"map {one['name']} is nearly full: {one['rows']} of {one['limit']} rows"
        for one in full
        if one["rows"] > _FULL * one["limit"]
    ]
