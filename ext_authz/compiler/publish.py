# SPDX-License-Identifier: Apache-2.0
"""
Brings a snapshot to its readers. One transport so far: a file of the state directory, replaced by rename.

Readers watch for the rename, read the file whole, check it, and write to STATE/readers which revision they decide
with. Revisions only rise, also over a restart: the number is kept beside the snapshot, and written first, so that a
crash between the two skips a number instead of using it twice.

Source: design.md "Publishing"; native/envoy/status.h
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ext_authz.engine import layout
from ext_authz.files import replace_file
from ext_authz.spare import SpareFile


class PublishError(Exception):
    """A snapshot was not published; the last one stays in force."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """One reader's word: it decides with this revision. `error`: why it refused a newer one, or empty."""

    reader: str
    revision: int
    digest: str
    error: str = ""


class Transport(Protocol):
    """Hands snapshots over and tells who has which."""

    @property
    def revision(self) -> int:
        """Of the last snapshot published; 0 before the first."""

    def publish(self, data: bytes | Sequence[bytes]) -> str:
        """Hand over one snapshot, whole or in parts with the head in the first; its digest in hexadecimal."""

    def acknowledgements(self) -> Sequence[Acknowledgement]:
        """What the readers decide with now."""

    def rest(self) -> None:
        """Nothing is published for a while."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a snapshot says of itself."""

    revision: int
    domain: int
    digest: str


def read_head(data: bytes | Sequence[bytes]) -> Head:
    """
    The head of a snapshot, whole or in parts.

    Raises:
        PublishError: Not a snapshot of this format.
    """
    record = layout.record("idm_header")
    parts = (data,) if isinstance(data, bytes) else data
    if not parts or len(parts[0]) < record.size:
        raise PublishError("not a snapshot: too short")
    head, size = record.unpack_from(parts[0]), sum(map(len, parts))
    if head["magic"] != layout.MAGIC or head["format"] != layout.FORMAT or head["file_size"] != size:
        raise PublishError("not a snapshot of this format, or cut short")
    return Head(head["revision"], head["domain"], head["digest"].hex())


class FileTransport:
    """Publishes to STATE/snapshot. One publisher per state directory."""

    def __init__(self, state: Path) -> None:
        self._snapshot = state / "snapshot"
        self._file = SpareFile(self._snapshot)
        self._counter = state / "revision"
        self._readers = state / "readers"
        self._digest = ""
        self._revision = max(self._read_counter(), self._read_snapshot())

    @property
    def revision(self) -> int:
        return self._revision

    def publish(self, data: bytes | Sequence[bytes]) -> str:
        """
        Put a snapshot in force. The same one again is harmless.

        Raises:
            PublishError: It is older than the one in force, or no snapshot.
            OSError: The file could not be written; the last one stays.
        """
        head = read_head(data)
        if head.revision < self._revision:
            raise PublishError(f"revision {head.revision} is older than {self._revision}, which is in force")
        if head.revision == self._revision and self._digest not in ("", head.digest):
            raise PublishError(f"revision {head.revision} is in force with other content")
        replace_file(self._counter, f"{head.revision}\n".encode())
        self._file.replace((data,) if isinstance(data, bytes) else data)
        self._revision, self._digest = head.revision, head.digest
        return head.digest

    def rest(self) -> None:
        """Nothing is published for a while: what was kept for the next time is let go."""
        self._file.drop()

    def acknowledgements(self) -> list[Acknowledgement]:
        """One per reader that left a report; a report that cannot be read is one that acknowledges nothing."""
        found = []
        for path in sorted(self._readers.glob("*.json")):
            try:
                report = json.loads(path.read_bytes())
                revision, digest = int(report.get("revision") or 0), str(report.get("digest") or "")
                found.append(Acknowledgement(path.stem, revision, digest, str(report.get("error") or "")))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, AttributeError, TypeError) as error:
                found.append(Acknowledgement(path.stem, 0, "", f"unreadable report: {error}"))
        return found

    def _read_counter(self) -> int:
        try:
            return int(self._counter.read_text())
        except (OSError, ValueError):
            return 0

    def _read_snapshot(self) -> int:
        try:
            head = read_head(self._snapshot.read_bytes())
        except (OSError, PublishError):
            return 0
        self._digest = head.digest
        return head.revision
