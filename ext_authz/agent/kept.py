# SPDX-License-Identifier: Apache-2.0
"""
Last good versions, one page a source file, so that a change writes what it touched.

An object is remembered with the text it had when it was last good. Pages are 0600: a Secret is among them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ext_authz.model.types import ObjectRef
from ext_authz.state import write_atomic

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """One object as it last was good. `line` is where its document starts in the file, from 0."""

    ref: ObjectRef
    file: str
    line: int
    text: str


class KeptStore:
    """All last good versions, in memory and in STATE/kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, dict[ObjectRef, Kept]] = {}
        self._unwritten: set[str] = set()  # files whose page may say something else than memory
        for page in sorted(folder.glob("*.json")):
            self._read(page)

    def _read(self, page: Path) -> None:
        """A page that cannot be read holds no good version; nothing is invented for it."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            held = json.loads(page.read_bytes())
            if held["format"] == _FORMAT:
                self._files[held["file"]] = {kept.ref: kept for kept in _objects(held)}

    def files(self) -> list[str]:
        return list(self._files)

    def unwritten(self) -> list[str]:
        """Files whose page could not be written, or removed: `replace` has to be called for them again."""
        return list(self._unwritten)

    def of_file(self, file: str) -> list[Kept]:
        return list(self._files.get(file, {}).values())

    def find(self, ref: ObjectRef) -> Kept | None:
        """The last good version, wherever it stood."""
        for held in self._files.values():
            if ref in held:
                return held[ref]
        return None

    def replace(self, file: str, objects: Iterable[Kept]) -> None:
        """
        What of this file counts from now on; nothing: the file is forgotten.

        Raises:
            OSError: It could not be written; memory has it all the same.
        """
        new = {kept.ref: kept for kept in objects}
        if new == self._files.get(file, {}) and file not in self._unwritten:
            return
        self._unwritten.add(file)
        page = self._folder / f"{hashlib.blake2b(os.fsencode(file), digest_size=16).hexdigest()}.json"
        if not new:
            self._files.pop(file, None)
            page.unlink(missing_ok=True)
            self._unwritten.discard(file)
            return
        self._files[file] = new
        rows = [[k.ref.kind, k.ref.namespace, k.ref.name, k.line, k.text] for k in new.values()]
        write_atomic(page, json.dumps({"format": _FORMAT, "file": file, "objects": rows}).encode())
        self._unwritten.discard(file)


def _objects(held: dict[str, Any]) -> Iterator[Kept]:
    for kind, namespace, name, line, text in held["objects"]:
        yield Kept(ObjectRef(str(kind), str(namespace), str(name)), str(held["file"]), int(line), str(text))
