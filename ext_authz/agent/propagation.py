# SPDX-License-Identifier: Apache-2.0
"""
How long a change takes to every reader: from the event that told of it to the reader's having it in force.

The readers say themselves since when a revision is in force (STATE/readers, `in_force_since`), so the figure holds
none of our own delay in looking. A reader that passes over a revision has it with the next.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ext_authz.inotify import DELETE, MOVED_TO, Inotify
from ext_authz.state import read_json

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SAMPLES = 2048
_PENDING_MAX = 256


@dataclass
class Histogram:
    """As Prometheus counts: each bucket holds all that took at most so long."""

    counts: list[int] = field(default_factory=lambda: [0] * len(BUCKETS))
    total: float = 0.0
    count: int = 0
    newest: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))

    def observe(self, seconds: float) -> None:
        for index, limit in enumerate(BUCKETS):
            self.counts[index] += seconds <= limit
        self.total += seconds
        self.count += 1
        self.newest.append(seconds)

    def record(self) -> dict[str, Any]:
        """p50 and p99 are of the newest samples, null without any."""
        newest = sorted(self.newest)
        return {
            "buckets": [{"le": le, "count": n} for le, n in zip(BUCKETS, self.counts, strict=True)],
            "sum": round(self.total, 6),
            "count": self.count,
            "p50": _quantile(newest, 0.5),
            "p99": _quantile(newest, 0.99),
        }


def _quantile(ordered: Sequence[float], part: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 6) if ordered else None


@dataclass
class _Reader:
    """reached: revisions and since when; counted: the newest published one that is in the histogram, or older."""

    reached: deque[tuple[int, float]]
    counted: int


class Propagation:
    """
    Watches the readers' pages; `fileno` is readable when one changed (-1: no inotify, `drain` looks at all).

    Tell it of events, of builds that begin and of revisions published.
    """

    def __init__(self, readers: Path) -> None:
        self.histogram = Histogram()
        self._folder = readers
        self._readers: dict[str, _Reader] = {}
        self._event: float | None = None
        self._claimed: float | None = None
        self._pending: dict[int, float] = {}
        try:
            self._inotify: Inotify | None = Inotify()
            self._inotify.watch(str(readers), MOVED_TO | DELETE)
        except OSError:
            self._inotify = None
        self._scan()

    def fileno(self) -> int:
        return self._inotify.fileno() if self._inotify else -1

    def event(self, at: float | None = None) -> None:
        """Something may have changed, now or at that Unix time. Of several before a build the first counts."""
        at = time.time() if at is None else at
        self._event = at if self._event is None else min(at, self._event)

    def building(self) -> None:
        """What was told until now is in the build that begins; a build that failed hands it on to the next."""
        times = [at for at in (self._event, self._claimed) if at is not None]
        self._claimed = min(times) if times else None
        self._event = None

    def built(self, revision: int, changed: bool) -> None:
        claimed, self._claimed = self._claimed, None
        if not changed or claimed is None:
            return
        self._pending[revision] = claimed
        while len(self._pending) > _PENDING_MAX:
            del self._pending[min(self._pending)]
        for reader in self._readers.values():
            self._count(reader)

    def drain(self) -> bool:
        """Look at the pages that changed. True if something was counted."""
        before = self.histogram.count
        if not self._inotify:
            self._scan()
            return self.histogram.count != before
        for change in self._inotify.read():
            if change.lost:
                self._scan()
            elif change.mask & DELETE:
                self._readers.pop(change.name, None)
            elif change.name.endswith(".json"):
                self._look(change.name)
        return self.histogram.count != before

    def close(self) -> None:
        if self._inotify:
            self._inotify.close()

    def _scan(self) -> None:
        names = [name for name in os.listdir(self._folder) if name.endswith(".json") and not name.startswith(".")]
        for gone in set(self._readers) - set(names):
            del self._readers[gone]
        for name in names:
            self._look(name)

    def _look(self, name: str) -> None:
        found = _read(self._folder / name)
        if found is None:
            return
        reader = self._readers.get(name)
        if reader is None:  # it began with this revision: nothing came to it
            self._readers[name] = _Reader(deque([found], maxlen=_PENDING_MAX), found[0])
        elif found[0] > reader.reached[-1][0]:
            reader.reached.append(found)
            self._count(reader)

    def _count(self, reader: _Reader) -> None:
        for revision in sorted(self._pending):
            if revision <= reader.counted:
                continue
            since = next((since for reached, since in reader.reached if reached >= revision), None)
            if since is None:
                return
            self.histogram.observe(max(0.0, since - self._pending[revision]))
            reader.counted = revision


def _read(page: Path) -> tuple[int, float] | None:
    """Revision and since when; a reader that does not say since when has it since it wrote the page."""
    report = read_json(page)
    if not isinstance(report, dict):
        return None
    try:
        return int(report.get("revision") or 0), float(report.get("in_force_since") or page.stat().st_mtime)
    except (OSError, TypeError, ValueError):
        return None
