# SPDX-License-Identifier: Apache-2.0
"""Follows the published snapshot: a new file is in force as soon as it is renamed there; a bad one changes nothing."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from ext_authz.engine.types import SnapshotError
from ext_authz.inotify import CREATE, DELETE_SELF, MOVE_SELF, MOVED_TO, Inotify
from ext_authz.logs import event
from ext_authz.memory import trim
from ext_authz.service.store import Store
from ext_authz.state import read_owned

log = logging.getLogger(__name__)

_RETRY_S = 1.0
# How often free memory is given back. After every load, loads of many revisions a second would take twice as long.
_TRIM_S = 1.0


class Follower:
    """
    Keeps a store at the newest good snapshot of one path.

    `fileno` becomes readable when the directory changed; without inotify, `look` at intervals is enough.
    """

    def __init__(self, path: Path, store: Store) -> None:
        self._path = path
        self._store = store
        self._seen: tuple[int, ...] | None = None
        self._retry = float("inf")
        self._is_untidy = False
        self._trimmed = float("-inf")
        self.rejected = 0
        self.problem = ""
        self.loaded_at = 0.0
        try:
            self._inotify: Inotify | None = Inotify()
        except OSError as error:
            event(log, logging.WARNING, "no inotify, polling", error_text=error)
            self._inotify = None

    def fileno(self) -> int:
        return self._inotify.fileno() if self._inotify else -1

    def look(self) -> bool:
        """Load what changed. True if a new snapshot came into force."""
        is_new = self._look()
        if self._is_untidy and time.monotonic() - self._trimmed >= _TRIM_S:
            trim()
            self._is_untidy, self._trimmed = False, time.monotonic()
        return is_new

    def _look(self) -> bool:
        self._rewatch()
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return False  # nothing published yet, or taken away: the one in force stays
        seen = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        if seen == self._seen and time.monotonic() < self._retry:
            return False
        self._seen, self._is_untidy = seen, True
        return self._load()

    def _rewatch(self) -> None:
        if not self._inotify:
            return
        folder = str(self._path.parent)
        if any(change.gone for change in self._inotify.read()) or folder not in self._inotify.watched():
            self._inotify.watch(folder, MOVED_TO | CREATE | DELETE_SELF | MOVE_SELF)

    def _load(self) -> bool:
        started = time.monotonic()
        try:
            self._store.load(read_owned(self._path))
        except (OSError, SnapshotError, MemoryError) as error:
            # What was read and is bad stays bad; what could not be read may be good all the same.
            self._retry = float("inf") if isinstance(error, SnapshotError) else time.monotonic() + _RETRY_S
            self.rejected += 1
            self.problem = str(error)
            event(log, logging.ERROR, "snapshot refused, the last one stays", reason=error, rejected=self.rejected)
            return False
        self.problem, self._retry = "", float("inf")
        self.loaded_at = time.time()
        took = (time.monotonic() - started) * 1000
        event(log, logging.INFO, "snapshot in force", revision=self._store.revision, load_ms=took)
        return True
