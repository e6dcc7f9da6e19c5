# SPDX-License-Identifier: Apache-2.0
"""
The sources with a memory: what they say, and where they say nothing sensible, what they last said.

A source or folder that is missing, unreadable or suddenly empty is an error, and its objects stay. An object that is
bad has its own last good version; if it never had one, the model closes whom it selects, or the node. Only a file or
a document taken out of a source that can be read and holds something is a deletion.

Source: design.md "Fail closed, always".
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ext_authz.agent.applied import Applied, AppliedStore
from ext_authz.agent.attachments import AttachmentStore
from ext_authz.agent.contents import WRITTEN, FileCache
from ext_authz.agent.kept import Kept, KeptStore
from ext_authz.model import SUFFIXES
from ext_authz.model.load import Loaded, Loader, walk_folders
from ext_authz.model.nodes import Document
from ext_authz.model.objects import ParsedObject, read_document
from ext_authz.model.parts import Part
from ext_authz.model.types import ObjectRef, Origin, PolicyError, Settings, World

_EMPTIED = "is suddenly empty: its objects keep their last good version (remove it to drop them)"
# How often a folder is read at one look if it changes each time.
_READINGS = 3
_NOBODY = ObjectRef("", "", "")


@dataclass(slots=True)
class Source:
    """One path the user gave, as found at the last look."""

    role: str  # policies | endpoints | applied | attached
    path: str
    files: int = 0
    objects: int = 0
    kept: int = 0  # objects that stand in their last good version
    problem: str = ""


@dataclass(slots=True)
class View:
    """One look. `kept` names the objects that stand in an earlier version."""

    world: World
    errors: list[PolicyError]
    warnings: list[PolicyError]
    sources: list[Source]
    kept: list[str]
    counts: dict[str, int]
    # File to what shall be remembered of it; files that are as they were are only in `hashes`.
    good: dict[str, list[Kept]] = field(default_factory=dict)
    hashes: dict[str, int] = field(default_factory=dict)
    unclean: set[str] = field(default_factory=set)  # files that hold something bad, or something kept
    largest: int = 0  # bytes of the largest file
    unfinished: set[str] = field(default_factory=set)  # files that somebody is just writing


@dataclass(slots=True)
class _Found:
    """What one look found on disk."""

    contents: dict[str, bytes | PolicyError] = field(default_factory=dict)
    lost: list[tuple[str, str]] = field(default_factory=list)  # file or folder whose objects stay, and why
    errors: list[PolicyError] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)  # sources that are missing or cannot be read; empty ones were read
    marks: dict[str, tuple[int, ...] | None] = field(default_factory=dict)  # sources and folders before they were read
    unfinished: set[str] = field(default_factory=set)  # files that somebody is just writing


class Sources:
    """Look again and again; call `persist` once what a look gave is in force."""

    def __init__(
        self,
        kept: Path,
        paths: dict[str, list[Path]],
        settings: Settings,
        node: str | None,
        applied: AppliedStore | None = None,
        attached: AttachmentStore | None = None,
    ) -> None:
        self._applied = applied
        self._attached = attached
        self._node = node
        self._paths = [(role, str(path.absolute())) for role, found in paths.items() for path in found]
        # No link leads into another source, nor to what is kept of them.
        self._apart = [*(path for _, path in self._paths), str(kept)]
        self._store = KeptStore(kept)
        self._loader = Loader(settings=settings, node=node)
        self._files = FileCache()
        self._contents: dict[str, bytes | PolicyError] = {}  # of the sources, at the last look
        self._hashes: dict[str, int] = {}
        self._unclean: set[str] = set()

    def look(self) -> View:
        """Read what is there. Never raises for what the sources hold."""
        found = self._read()
        self._contents = dict(found.contents)
        for applied in self._applied.read() if self._applied else ():
            _take_applied(applied, found)
        if self._attached:
            _take_attached(self._attached, self._node, found)
        mender = _Mender(self._store, found)
        loaded = self._loader.load_contents(list(found.contents.items()), mender.mend)
        world = loaded.world
        for source in found.sources:
            source.kept = sum(1 for kept in mender.used if within(kept.file, source.path))
            # Never read: nothing may be taken for allowed, and whom a rule denies by label may stand in there.
            if source.problem and not source.kept and (source.role == "policies" or source.path in found.unread):
                world = replace(world, closed=True)
        objects = sum(len(listing.objects) for listing in loaded.listings)
        counts = {"objects": objects, "skipped": sum(loaded.skipped.values())}
        errors = [*found.errors, *loaded.errors]
        view = View(world, errors, loaded.warnings, found.sources, mender.names, counts)
        view.unfinished = found.unfinished
        self._remember(view, loaded, found, mender)
        return view

    def persist(self, view: View) -> None:
        """
        Remember the good versions of a look.

        Raises:
            OSError: A page could not be written.
        """
        for file in self._store.unwritten():
            self._store.replace(file, self._store.of_file(file))
        for file in self._store.files():
            if file not in view.hashes and file not in view.good:
                self._store.replace(file, ())
        for file, objects in view.good.items():
            self._store.replace(file, objects)
        self._hashes, self._unclean = view.hashes, view.unclean

    def _read(self) -> _Found:
        """What changes while it is read is read again: what went may stand where had been looked already."""
        for _ in range(_READINGS):
            found = _Found()
            for role, path in self._paths:
                source = Source(role, path)
                found.sources.append(source)
                self._read_source(source, found)
            self._files.forget(found.contents)
            if not self._is_torn(found):
                break
        return found

    def _is_torn(self, found: _Found) -> bool:
        """
        Something changed meanwhile, as far as times tell, and something known is not where it was.

        New files alone, as under churn, are no reason: whoever adds one meanwhile is told of by an event.
        """
        # The first time nobody knows what was where.
        if self._contents and all(found.contents.get(name) == held for name, held in self._contents.items()):
            return False
        return any(_mark(path) != mark for path, mark in found.marks.items()) or self._files.changed()

    def _read_source(self, source: Source, found: _Found) -> None:
        before = len(found.contents)
        found.marks.setdefault(source.path, _mark(source.path))
        if os.path.isdir(source.path):
            self._read_folder(source, found)
        else:
            found.contents.setdefault(source.path, self._take(source.path, found))
        own = [name for name in found.contents if within(name, source.path)]
        source.files = len(own)
        problem = self._source_problem(source, own, found)
        if any(isinstance(found.contents[name], PolicyError) for name in own) or (source.path in dict(found.lost)):
            found.unread.add(source.path)
        if problem:
            source.problem = problem
            # Nothing of it counts, so that a torn read and a lost mount end alike.
            for name in list(found.contents)[before:]:
                del found.contents[name]
            found.lost.append((source.path, problem))
            found.errors.append(PolicyError(Origin(source.path, 1, 1), _NOBODY, "", problem))

    def _source_problem(self, source: Source, own: list[str], found: _Found) -> str:
        if not os.path.lexists(source.path):
            return f"is missing: {self._instead(source)}"
        if not own:
            return f"holds no files: {self._instead(source)}"
        contents = [found.contents[name] for name in own]
        if all(isinstance(content, PolicyError) for content in contents):
            return f"cannot be read: {contents[0].reason}" if isinstance(contents[0], PolicyError) else ""
        if not any(isinstance(content, PolicyError) or content.strip() for content in contents):
            return f"is empty: {self._instead(source)}"
        return ""

    def _instead(self, source: Source) -> str:
        """What stands for a source that cannot be used."""
        if any(within(file, source.path) and self._store.of_file(file) for file in self._store.files()):
            return "its objects keep their last good version"
        return "it never held a good object that could stand in for it"

    def _take(self, path: str, found: _Found) -> bytes | PolicyError:
        content = self._files.read(path)
        if isinstance(content, PolicyError) and content.reason == WRITTEN:
            found.unfinished.add(path)
        return content

    def _read_folder(self, source: Source, found: _Found) -> None:
        known: dict[str, int] = defaultdict(int)
        for file in self._store.files():
            if within(file, source.path):
                known[os.path.dirname(file)] += 1

        for link in {link for folder in known for link in _links_to_nothing(folder, source.path)}:
            self._lose(link, "is a link to nothing: its objects keep their last good version", found)

        def fail(error: OSError) -> None:
            folder = str(error.filename)
            self._lose(folder, f"cannot be read: {error.strerror}", found)

        for base, folders, names in walk_folders(source.path, self._apart, fail):
            for path in (os.path.join(base, name) for name in folders):
                found.marks.setdefault(path, _mark(path))
            files = sorted(name for name in names if name.endswith(SUFFIXES) and not name.startswith("."))
            for name in files:
                path = os.path.join(base, name)
                content = self._take(path, found)
                # A new one is not there yet: no reason to close the node while it is copied.
                if path not in found.unfinished or path in self._contents or not self._contents:
                    found.contents.setdefault(path, content)
            if not files and known[base] and base != source.path:
                self._lose(base, _EMPTIED, found)

    @staticmethod
    def _lose(folder: str, reason: str, found: _Found) -> None:
        found.lost.append((folder, reason))
        found.errors.append(PolicyError(Origin(folder, 1, 1), _NOBODY, "", reason))

    def _remember(self, view: View, loaded: Loaded, found: _Found, mender: _Mender) -> None:
        """
        Good objects as they are now, and what stands in for the others: of files that changed, or hold something bad.
        """
        view.largest = max((len(held) for held in found.contents.values() if isinstance(held, bytes)), default=0)
        view.hashes = {name: hash(content) for name, content in found.contents.items() if isinstance(content, bytes)}
        view.unclean = {listing.file for listing in loaded.listings if listing.good < len(listing.objects)}
        view.unclean |= {kept.file for kept in mender.used}
        changed = {name for name, known in view.hashes.items() if self._hashes.get(name) != known}
        changed |= view.unclean | self._unclean
        good: dict[str, list[Kept]] = {name: [] for name in changed}
        for listing in loaded.listings:
            if listing.file in changed:
                for thing in listing.objects:
                    if thing.ok:
                        good[thing.file].append(Kept(thing.ref, thing.file, thing.line, thing.text))
        now = {kept.ref for objects in good.values() for kept in objects}
        for kept in mender.used:
            if kept.ref not in now:
                good[kept.file].append(kept)
        view.good = good
        for source in found.sources:
            own = sum(listing.good for listing in loaded.listings if within(listing.file, source.path))
            source.objects = source.kept + own


def _links_to_nothing(folder: str, top: str) -> Iterator[str]:
    """Among a folder and those above it, below the top."""
    while folder != top and within(folder, top):
        if os.path.islink(folder) and not os.path.exists(folder):
            yield folder
        folder = os.path.dirname(folder)


def _mark(path: str) -> tuple[int, ...] | None:
    """Another one once a name in the folder came or went, or the file was written."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _take_applied(applied: Applied, found: _Found) -> None:
    """What was handed in counts as it was then; a file that another source reads itself counts only there."""
    source = Source("applied", applied.name, files=len(applied.files), problem=applied.problem)
    if applied.problem:
        # Whose it was is not known if even the name is lost: then nothing that was good may be dropped.
        found.lost.append((applied.name or "/", applied.problem))
        found.errors.append(PolicyError(Origin(applied.name or "/", 1, 1), _NOBODY, "", applied.problem))
        found.unread.add(source.path)
    elif not applied.files:
        return
    found.sources.append(source)
    for path, content in applied.files:
        if path in found.contents:
            reason = (
                f"is read by another source already: what was handed in as {applied.name} does not count "
                "(idmesh apply --remove takes it back)"
            )
            found.errors.append(PolicyError(Origin(path, 1, 1), _NOBODY, "", reason))
        else:
            found.contents[path] = content


def _take_attached(store: AttachmentStore, node: str | None, found: _Found) -> None:
    """Attached endpoints that brought labels are Pods of this node; one that cannot be read stays what it was."""
    files = store.files()
    if not files:
        return
    source = Source("attached", str(store.folder), files=len(files))
    found.sources.append(source)
    for file in files:
        if file.attachment is None:
            source.problem = file.problem
            found.lost.append((file.path, file.problem))
            found.errors.append(PolicyError(Origin(file.path, 1, 1), _NOBODY, "", file.problem))
        elif content := file.attachment.document(node):
            found.contents[file.path] = content


class _Mender:
    """Puts last good versions in the place of what cannot be used; `used` and `names` tell which."""

    def __init__(self, store: KeptStore, found: _Found) -> None:
        self._store = store
        self._found = found
        self.used: list[Kept] = []
        self.names: list[str] = []

    def mend(self, parts: Sequence[Part], refused: set[int], settings: Settings) -> list[ParsedObject] | None:
        """The objects that count, or None if nothing is to mend. The last call, of those for one look, holds."""
        self.used, self.names = [], []
        self._add_emptied({part.file for part in parts if part.objects})
        if not refused and not any(part.bad for part in parts) and not self._found.lost:
            return None
        objects = [parsed for part in parts for parsed in part.objects]
        bad = [parsed for parsed in objects if not parsed.skipped and (not parsed.ok or id(parsed) in refused)]
        if not bad and not self._found.lost:
            return None
        present = {parsed.ref for parsed in objects if parsed.ok and id(parsed) not in refused}
        chosen: dict[ObjectRef, Kept] = {}
        covered: set[int] = set()
        self._by_name(bad, present, chosen, covered)
        self._by_file(bad, objects, present, chosen, covered)
        self._lost(present, chosen)
        self.used = list(chosen.values())
        self.names = sorted(f"{kept.ref.kind} {kept.ref.namespace}/{kept.ref.name}" for kept in self.used)
        rest = [parsed for parsed in objects if id(parsed) not in covered]
        return rest + [parsed for kept in self.used for parsed in _parse(kept, settings)]

    def _add_emptied(self, holding: set[str]) -> None:
        """A file that held objects and now holds none was torn or truncated: to drop them, remove the file."""
        for file in self._store.files():
            known = (file, _EMPTIED) in self._found.lost  # where it is mended once more, with other settings
            if file in self._found.contents and file not in holding and self._store.of_file(file) and not known:
                Sources._lose(file, _EMPTIED, self._found)

    def _by_name(
        self, bad: list[ParsedObject], present: set[ObjectRef], chosen: dict[ObjectRef, Kept], covered: set[int]
    ) -> None:
        for parsed in bad:
            kept = self._store.find(parsed.ref) if parsed.ref.name else None
            if kept is None or parsed.ref in present:
                continue
            chosen[parsed.ref] = kept
            covered.add(id(parsed))

    def _by_file(
        self,
        bad: list[ParsedObject],
        objects: list[ParsedObject],
        present: set[ObjectRef],
        chosen: dict[ObjectRef, Kept],
        covered: set[int],
    ) -> None:
        """
        Documents so broken that they name nobody: whatever their file last held and is nowhere now may be theirs.

        If fewer objects are missing than documents are broken, one of them is new: it stays and closes the node.
        """
        named = present | {parsed.ref for parsed in bad if parsed.ref.name}
        nameless: dict[str, list[ParsedObject]] = defaultdict(list)
        for parsed in bad:
            if not parsed.ref.name:
                nameless[parsed.origin.file].append(parsed)
        for file, broken in nameless.items():
            missing = [kept for kept in self._store.of_file(file) if kept.ref not in named]
            chosen.update((kept.ref, kept) for kept in missing)
            whole = isinstance(self._found.contents.get(file), PolicyError) or not any(p.text for p in broken)
            if missing and (whole or len(missing) >= len(broken)):
                covered.update(id(parsed) for parsed in broken)

    def _lost(self, present: set[ObjectRef], chosen: dict[ObjectRef, Kept]) -> None:
        for place, _ in self._found.lost:
            for file in self._store.files():
                if within(file, place):
                    chosen.update((kept.ref, kept) for kept in self._store.of_file(file) if kept.ref not in present)


def _parse(kept: Kept, settings: Settings) -> list[ParsedObject]:
    return read_document(Document(kept.text, max(0, kept.line - 1)), kept.file, settings)


def within(file: str, place: str) -> bool:
    """True for the place itself and all below it."""
    return file == place or file.startswith(place.rstrip("/") + "/")
