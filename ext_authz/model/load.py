# SPDX-License-Identifier: Apache-2.0
"""
Files to a World: finds the files, reads what changed, joins the objects.

A Loader remembers every document by its text, so a load costs what changed. Nothing is kept between loads that the
files did not say: a file gone is its objects gone; keeping a last good version is the agent's work, which finds each
object's text in `Loaded.objects`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ext_authz.model import SUFFIXES
from ext_authz.model.nodes import Document, split_documents
from ext_authz.model.objects import LoadedObject, ParsedObject, moved, read_document
from ext_authz.model.parts import Listing, Part
from ext_authz.model.types import ObjectRef, Origin, PolicyError, Settings, World
from ext_authz.model.world import Joined, WorldBuilder

__all__ = ["Loaded", "LoadedObject", "Loader", "find_files", "load", "load_text"]

DEFAULTS = Settings()
MAX_FILE = 256 << 20


@dataclass(slots=True)
class Loaded:
    """What the files held. `skipped` counts objects of other kinds; listings: file by file."""

    world: World
    errors: list[PolicyError] = field(default_factory=list)
    warnings: list[PolicyError] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    listings: list[Listing] = field(default_factory=list)

    @property
    def objects(self) -> list[LoadedObject]:
        return [entry for listing in self.listings for entry in listing.objects]


Mend = Callable[[Sequence[Part], set[int], Settings], "list[ParsedObject] | None"]


@dataclass(slots=True)
class _File:
    content: bytes | PolicyError
    texts: list[str]
    part: Part


@dataclass(frozen=True, slots=True)
class _Read:
    """What a document's text gave, and where it stood then."""

    file: str
    line: int
    objects: list[ParsedObject]


class Loader:
    """
    Loads again and again, reading only documents whose text is new.

    Args:
        settings: What the user stated; a ConfigMap cilium-config among the files fills in the rest.
        node: Name of the own Node; without it every pod is local.
        strict: Objects of other kinds are errors.
    """

    def __init__(self, *, settings: Settings = DEFAULTS, node: str | None = None, strict: bool = False) -> None:
        self._builder = WorldBuilder(settings, node, strict)
        self._mended = WorldBuilder(settings, node, strict)
        self._read_with: Settings | None = None
        self._said: Settings | None = None  # settings by the files as they are, and those that counted then
        self._counted = settings
        self._files: dict[str, _File] = {}
        self._documents: dict[str, _Read] = {}

    def load(self, paths: Sequence[str | Path]) -> Loaded:
        """
        Read files and folders.

        Raises:
            OSError: A path does not exist. (A file inside a folder that cannot be read is an error of the result.)
        """
        texts = [(name, read_bytes(name, given)) for name, given in find_files(paths)]
        return self._load(texts)

    def load_text(self, text: str, file: str) -> Loaded:
        """The same for one text."""
        return self._load([(file, text.encode("utf-8", "surrogatepass"))])

    def load_contents(self, contents: Sequence[tuple[str, bytes | PolicyError]], mend: Mend | None = None) -> Loaded:
        """
        The same for files that were read already, each name once.

        Args:
            mend: Gets all objects by file, the ids of those refused in company, and the settings in force; gives the
                objects that shall count instead (last good versions), or None. Errors are reported as without it.
        """
        return self._load(contents, mend)

    def _load(self, contents: Sequence[tuple[str, bytes | PolicyError]], mend: Mend | None = None) -> Loaded:
        with _without_gc():
            return self._join(contents, mend)

    def _join(self, contents: Sequence[tuple[str, bytes | PolicyError]], mend: Mend | None) -> Loaded:
        builder = self._builder
        effective = self._read_with or builder.settings([])
        parts = self._parts(contents, effective)
        said = builder.settings(parts)
        settings = self._counted if said == self._said else said
        for _ in range(2):
            if settings != self._read_with:
                parts = self._parts(contents, settings)
            joined = builder.join(parts, settings)
            mended = mend(parts, set(joined.refused), settings) if mend is not None else None
            counts = None if mended is None else Part(mended)
            counted = said if counts is None else builder.settings([counts])
            self._said, self._counted = said, counted
            if counted == settings:
                break
            settings = counted  # the ConfigMap that counts decides what policies may say: they are read again with it
        loaded = Loaded(joined.world, joined.errors, joined.warnings, joined.skipped, _listed(parts, joined))
        if counts is not None:
            loaded.world = self._mended.join([counts], joined.world.settings).world
        return loaded

    def _parts(self, contents: Sequence[tuple[str, bytes | PolicyError]], settings: Settings) -> list[Part]:
        if settings != self._read_with:
            self._files, self._documents, self._read_with = {}, {}, settings
        files: dict[str, _File] = {}
        for name, content in contents:
            known = self._files.get(name)
            if known is None or known.content != content or isinstance(content, PolicyError):
                known = self._read_file(name, content)
            files[name] = known
        self._files = files
        self._forget_documents()
        return [known.part for known in files.values()]

    def _forget_documents(self) -> None:
        """Let go of texts that no file holds any more, once they are many beside those that some file holds."""
        if len(self._documents) > 1.2 * sum(len(known.texts) for known in self._files.values()) + 1000:
            held = {text for known in self._files.values() for text in known.texts}
            self._documents = {text: read for text, read in self._documents.items() if text in held}

    def _read_file(self, name: str, content: bytes | PolicyError) -> _File:
        if isinstance(content, PolicyError):
            return _File(content, [], Part([_file_problem(content)], name))
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            return _File(content, [], Part([_file_problem(_not_utf8(name, content, error.start))], name))
        texts: list[str] = []
        found: list[ParsedObject] = []
        for document in split_documents(text):
            objects = self._read(document, name, self._documents.get(document.text))
            self._documents[document.text] = _Read(name, document.line, objects)
            texts.append(document.text)
            found.extend(objects)
        before = self._files.get(name)
        return _File(content, texts, Part(found, name, before.part if before else None))

    def _read(self, document: Document, name: str, known: _Read | None) -> list[ParsedObject]:
        assert self._read_with is not None
        if known is None or (
            (known.file, known.line) != (name, document.line) and any(p.errors for p in known.objects)
        ):
            # A reason may speak of lines, so what is wrong is read again where it stands now.
            return read_document(document, name, self._read_with)
        if (known.file, known.line) == (name, document.line):
            return known.objects
        return [moved(parsed, name, document.line - known.line) for parsed in known.objects]


def load(
    paths: Sequence[str | Path], *, settings: Settings = DEFAULTS, node: str | None = None, strict: bool = False
) -> Loaded:
    """Read files and folders once; see Loader.load."""
    return Loader(settings=settings, node=node, strict=strict).load(paths)


def load_text(
    text: str, file: str, *, settings: Settings = DEFAULTS, node: str | None = None, strict: bool = False
) -> Loaded:
    """Read one text once, as if it stood in `file`."""
    return Loader(settings=settings, node=node, strict=strict).load_text(text, file)


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Nothing made here is cyclic; a full collection over all kept objects costs ten times a small load (180 ms)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def find_files(paths: Sequence[str | Path]) -> list[tuple[str, bool]]:
    """
    The files to read, each once and in a fixed order, with whether the user named it himself.

    In folders: *.yaml, *.yml and *.json at any depth; names that begin with a dot are passed over (as the folders
    that Kubernetes puts beside mounted files).
    """
    found: dict[str, bool] = {}
    for path in paths:
        name = os.fspath(path)
        if os.path.isdir(name):
            for file in _walk(name, paths):
                found.setdefault(file, False)
        else:
            os.stat(name)  # raises for what does not exist
            found[name] = True
    return list(found.items())


def walk_folders(
    top: str, others: Iterable[str | Path] = (), onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """
    As os.walk, of the folders that count: in order, each once, also where a link leads to one.

    Kubernetes mounts a key `team/x.yaml` as a link `team` beside the folder that it swaps.

    Args:
        others: What is read for itself: no link is followed into it, nor to where it lies.
    """
    apart = [os.path.realpath(other) for other in others if os.path.abspath(other) != os.path.abspath(top)]
    seen: set[tuple[int, int]] = set()
    _is_new(top, seen)
    for base, folders, names in os.walk(top, onerror=onerror, followlinks=True):
        shown = sorted(name for name in folders if not name.startswith("."))
        paths = [(name, os.path.join(base, name)) for name in shown]
        folders[:] = [name for name, path in paths if not _leads_to(path, apart) and _is_new(path, seen)]
        yield base, folders, names


def _leads_to(path: str, others: Sequence[str]) -> bool:
    if not others or not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    return any(os.path.commonpath((target, other)) in (target, other) for other in others)


def _is_new(folder: str, seen: set[tuple[int, int]]) -> bool:
    try:
        found = os.stat(folder)
    except OSError:
        return True  # whoever walks there is told
    key = (found.st_dev, found.st_ino)
    is_new = key not in seen
    seen.add(key)
    return is_new


def _walk(folder: str, others: Sequence[str | Path]) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    for base, _, files in walk_folders(folder, others, fail):
        for file in sorted(files):
            if file.endswith(SUFFIXES) and not file.startswith("."):
                yield os.path.join(base, file)


def read_bytes(name: str, given: bool) -> bytes | PolicyError:
    """The file's content; of one the user did not name himself, the reason why not."""
    # A pipe would hold the reader for ever, a device would never end; asked of what was opened, not of the name.
    flags = os.O_RDONLY | os.O_CLOEXEC | (0 if given else os.O_NONBLOCK)
    try:
        with open(os.open(name, flags), "rb") as file:
            found = os.fstat(file.fileno())
            if not given and not stat.S_ISREG(found.st_mode):
                reason = "is no regular file"
            elif found.st_size > MAX_FILE:
                reason = f"is larger than {MAX_FILE >> 20} MiB: split it"
            else:
                return file.read()
    except OSError as error:
        if given:
            raise
        reason = f"cannot be read: {error.strerror}"
    return PolicyError(Origin(name, 1, 1), ObjectRef("", "", ""), "", reason)


def _not_utf8(name: str, content: bytes, position: int) -> PolicyError:
    before = content[:position]
    column = len(before) - before.rfind(b"\n")
    return PolicyError(
        Origin(name, before.count(b"\n") + 1, column), ObjectRef("", "", ""), "", "is not UTF-8 text: save it as UTF-8"
    )


def _file_problem(error: PolicyError) -> ParsedObject:
    return ParsedObject(error.ref, error.origin, "", errors=[error], closed=True)


def _listed(parts: Sequence[Part], joined: Joined) -> list[Listing]:
    listings = [part.listing for part in parts]
    if not joined.refused:
        return listings
    refused = {(p.ref, p.origin.file, p.origin.line) for part in parts for p in part.objects if id(p) in joined.refused}
    files = {file for _, file, _ in refused}
    return [_without(listing, refused) if listing.file in files else listing for listing in listings]


def _without(listing: Listing, refused: set[tuple[ObjectRef, str, int]]) -> Listing:
    listed = [replace(e, ok=False) if (e.ref, e.file, e.line) in refused else e for e in listing.objects]
    return Listing(listing.file, listed, sum(1 for entry in listed if entry.ok))
