# SPDX-License-Identifier: Apache-2.0
"""
Sources that were handed in with `idmesh apply`: kept in STATE/applied, so that they outlive the node.

Each has a folder of its own, named for the digest of its name. In it `name`, one file a content, and `source.json`,
which says which of them count under which path. The index is replaced last and at once: a source is there whole, in
the old version or the new one. Folder 0700, files 0600: a Secret may be among them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ext_authz.files import replace_file

_FORMAT = 1
_INDEX, _NAME = "source.json", "name"
LIMIT = 64 << 20


class ApplyError(ValueError):
    """A source cannot be taken as it is; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Applied:
    """
    One source as it was handed in.

    name: the absolute path that identifies it; empty if even that cannot be read. files: path and content.
    problem: why it cannot be read back; its files are then not all there.
    """

    name: str
    files: tuple[tuple[str, bytes], ...] = ()
    applied: float = 0.0
    problem: str = ""


class AppliedStore:
    """All of them. One writer, the agent; the compiling process reads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[tuple[int, int], Applied]] = {}

    def put(self, name: str, files: Sequence[tuple[str, bytes]]) -> None:
        """
        Take a source, in the place of an earlier one of that name.

        Raises:
            ApplyError: It is none.
            OSError: It could not be kept.
        """
        check(name, files)
        place = self._place(name)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(place / _NAME, os.fsencode(name))
        rows = []
        for path, content in files:
            stored = _digest(content)
            if not (place / stored).exists():
                replace_file(place / stored, content)
            rows.append([path, stored])
        index = {"format": _FORMAT, "name": name, "applied": time.time(), "files": rows}
        replace_file(place / _INDEX, json.dumps(index).encode())
        for left in set(os.listdir(place)) - {_INDEX, _NAME} - {stored for _, stored in rows}:
            (place / left).unlink()

    def remove(self, name: str) -> bool:
        """
        Withdraw a source. False if there is none of that name.

        Raises:
            OSError: It is still there.
        """
        place = self._place(name)
        if not place.exists():
            return False
        # A folder without a name is none; so it is gone at once, whatever becomes of the rest.
        gone = place.with_name(f".{place.name}")
        shutil.rmtree(gone, ignore_errors=True)
        place.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def read(self) -> list[Applied]:
        """All sources, in the order of their names. Never raises for what is damaged."""
        return sorted(self._read(), key=lambda source: source.name)

    def _read(self) -> Iterator[Applied]:
        try:
            places = [place for place in self._folder.iterdir() if not place.name.startswith(".")]
        except FileNotFoundError:
            return
        except OSError as error:
            yield Applied("", problem=f"{self._folder}: cannot be read: {error.strerror}")
            return
        for place in places:
            yield self._read_place(place)
        for gone in set(self._known) - {place.name for place in places}:
            del self._known[gone]

    def _read_place(self, place: Path) -> Applied:
        """An index is replaced, never changed, so one seen before is as it was."""
        try:
            found = (place / _INDEX).stat()
        except OSError:
            return _read_place(place)
        mark = (found.st_ino, found.st_mtime_ns)
        known = self._known.get(place.name)
        if known is None or known[0] != mark or known[1].problem:
            known = self._known[place.name] = (mark, _read_place(place))
        return known[1]

    def _place(self, name: str) -> Path:
        return self._folder / _folder_of(name)


def check(name: str, files: Sequence[tuple[str, bytes]]) -> None:
    """
    Raises:
        ApplyError: It is no source.
    """
    if not name.startswith("/") or "\0" in name:
        raise ApplyError(f"{name}: a source is named by an absolute path")
    paths = [path for path, _ in files]
    for path in (name, *paths):
        if not _is_text(path):
            raise ApplyError(f"{path}: its name is not UTF-8: rename it")
    if len(set(paths)) != len(paths):
        raise ApplyError(f"{name}: a file is there twice")
    for path in paths:
        if path != name and not path.startswith(name.rstrip("/") + "/"):
            raise ApplyError(f"{path}: does not belong to {name}")
    if not any(content.strip() for _, content in files):
        raise ApplyError(f"{name}: is empty (to take it out of force, use --remove)")
    if sum(len(content) for _, content in files) > LIMIT:
        raise ApplyError(f"{name}: is larger than {LIMIT >> 20} MiB: hand it in in parts")


def _is_text(name: str) -> bool:
    """What is not UTF-8 cannot be said to the node, nor named in its messages."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_place(place: Path) -> Applied:
    name = ""
    try:
        with contextlib.suppress(FileNotFoundError):
            said = os.fsdecode((place / _NAME).read_bytes())
            name = said if _folder_of(said) == place.name else ""
        if not (place / _INDEX).exists():  # a first version that was never finished
            return Applied(name, problem="" if name or not os.listdir(place) else f"{place}: is damaged")
        index = json.loads((place / _INDEX).read_bytes())
        if index["format"] != _FORMAT:
            raise ValueError(f"format {index['format']!r}")
        if _folder_of(str(index["name"])) != place.name:
            raise ValueError("the name is another one")
        files = tuple((str(path), _content(place, str(stored))) for path, stored in index["files"])
        return Applied(str(index["name"]), files, float(index["applied"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Applied(name, problem=f"what was handed in cannot be read back ({place}: {error}): hand it in again")


def _content(place: Path, stored: str) -> bytes:
    if not stored.isalnum():
        raise ValueError(f"{stored}: is no name of a content")
    content = (place / stored).read_bytes()
    if _digest(content) != stored:
        raise ValueError(f"{stored}: holds something else")
    return content


def _folder_of(name: str) -> str:
    return hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=20).hexdigest()
