# SPDX-License-Identifier: Apache-2.0
"""
Follows a node from outside: when it looked at its sources, and since when each reader has which revision in force.

Every time comes from the pages themselves, so that looking late makes no figure better: a revision that was passed
over unseen counts with the next.
"""

from __future__ import annotations

import bisect
import select
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from ext_authz.inotify import DELETE, MOVED_TO, Inotify
from ext_authz.state import State, read_json

# Readers may take this long before a revision counts as lost.
LOST_S = 5.0


@dataclass
class Reached:
    """What one reader has had in force: rising revisions and since when."""

    door: str
    revisions: list[int] = field(default_factory=list)
    since: list[float] = field(default_factory=list)

    def when(self, revision: int) -> float | None:
        """Since when it has this revision or a later one."""
        at = bisect.bisect_left(self.revisions, revision)
        return self.since[at] if at < len(self.since) else None


class Watching:
    """A thread that reads the pages as they change, between `start` and `stop`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._ends = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.looks: list[tuple[float, int]] = []  # when it looked, and the revision after that
        self.builds: list[dict[str, float]] = []
        self.readers: dict[str, Reached] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ends = True
        self._thread.join()

    def revision_of(self, changed: float) -> int | None:
        """The first revision made by a look that began after a change."""
        at = bisect.bisect_left(self.looks, (changed, 0))
        return self.looks[at][1] if at < len(self.looks) else None

    def in_force(self, changed: float, door: str | None = None) -> float | None:
        """When every reader (of one door) had what was changed; None: not all of them have."""
        revision = self.revision_of(changed)
        if revision is None:
            return None
        times = [reader.when(revision) for reader in self.readers.values() if door in (None, reader.door)]
        reached = [at for at in times if at is not None]
        return max(reached) if reached and len(reached) == len(times) else None

    def _run(self) -> None:
        events = Inotify()
        events.watch(str(self._state.root), MOVED_TO)
        events.watch(str(self._state.readers), MOVED_TO | DELETE)
        self._look({self._state.status.name, *(path.name for path in self._state.readers.glob("*.json"))})
        while not self._ends:
            if select.select([events.fileno()], [], [], 0.1)[0]:
                self._look({change.name for change in events.read()})
        events.close()

    def _look(self, names: set[str]) -> None:
        if self._state.status.name in names:
            self._take_build(read_json(self._state.status) or {})
        for name in names:
            if name.endswith(".json") and not name.startswith(".") and name != self._state.status.name:
                self._take_reader(name, self._state.readers / name)

    def _take_build(self, page: dict) -> None:
        looked, revision = float(page.get("looked") or 0), int(page.get("revision") or 0)
        if revision and (not self.looks or looked > self.looks[-1][0]):
            self.looks.append((looked, revision))
            if page.get("changed"):
                self.builds.append({key: page[key] for key in ("read_ms", "compile_ms", "publish_ms")})

    def _take_reader(self, name: str, path: Path) -> None:
        page = read_json(path) or {}
        revision, since = int(page.get("revision") or 0), page.get("in_force_since")
        if not revision or not since:
            return
        reader = self.readers.setdefault(name, Reached(str(page.get("door"))))
        if not reader.revisions or revision > reader.revisions[-1]:
            reader.revisions.append(revision)
            reader.since.append(float(since))

    def settle(self, changed: float) -> None:
        """Wait until every reader has a change."""
        end = time.monotonic() + LOST_S
        while self.in_force(changed) is None and time.monotonic() < end:
            time.sleep(0.01)
