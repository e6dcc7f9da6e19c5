# SPDX-License-Identifier: Apache-2.0
"""
Numbers for label sets, behind one interface: in memory, or kept in a file over restarts.

A number belongs to a domain; a lost state starts another domain, so that an old number can never be mistaken for a
new one. A released number stays reserved until every reader has confirmed a later generation: only then can no
revision, connection or pool still hold it.

Source: reference policy-semantics section 6 for the ranges; shared design, "Identity numbers".
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from ext_authz.files import replace_file
from ext_authz.identity.labels import CIDR, CIDR_GROUP, FQDN, RESERVED, parse_label


class AllocationError(Exception):
    """No number is left, or the state cannot be kept; what was allocated before stands."""


class Scope(Enum):
    """Ranges of numbers: first and last, both included."""

    GLOBAL = (256, 65535)
    LOCAL = (16777217, 33554431)
    REMOTE_NODE = (33554433, 50331647)


Labels = tuple[str, ...]


class Allocator(Protocol):
    """
    Gives each label set one number.

    domain: id of the numbers' domain, never 0. A generation is the revision of a snapshot: released in one means that
    this snapshot and later ones no longer hold the number.
    """

    @property
    def domain(self) -> int: ...

    def allocate(self, labels: Iterable[str]) -> int:
        """The number of these labels, the same as last time. Raises AllocationError if none is left."""

    def release(self, labels: Iterable[str], generation: int) -> None:
        """The number is gone from this generation on; it is kept from reuse until that is confirmed."""

    def keep_only(self, used: Iterable[Iterable[str]], generation: int) -> None:
        """Release all label sets but these."""

    def confirm(self, generation: int) -> None:
        """Every reader is at this generation or later: what was released up to it may be given again."""

    def flush(self) -> None:
        """
        Make all numbers given so far outlive a restart, where the allocator does that.

        What was released since is not hurried: after a restart nobody asks for it, and it is released again.
        """


def scope_of(labels: Iterable[str]) -> Scope:
    """Prefixes and names are local to the node, nodes have a scope of their own, all else is global."""
    parsed = [parse_label(text) for text in labels]
    sources = {label.source for label in parsed}
    reserved = {label.key for label in parsed if label.source == RESERVED}
    if "remote-node" in reserved or "host" in reserved:
        return Scope.REMOTE_NODE
    if sources & {CIDR, CIDR_GROUP, FQDN} and not sources & {"k8s", "container"}:
        return Scope.LOCAL
    return Scope.LOCAL if any(name.startswith("world") for name in reserved) else Scope.GLOBAL


class MemoryAllocator:
    """Numbers for the life of this object."""

    def __init__(self, domain: int | None = None) -> None:
        self._domain = domain if domain else new_domain()
        self._numbers: dict[Labels, int] = {}
        self._next = {scope: scope.value[0] for scope in Scope}
        self._released: dict[Labels, int] = {}
        self._free: dict[Scope, list[int]] = {scope: [] for scope in Scope}
        self._changes = 0

    @property
    def domain(self) -> int:
        return self._domain

    def allocate(self, labels: Iterable[str]) -> int:
        key = tuple(sorted(labels))
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._take(scope_of(key))
            self._changes += 1
        if self._released.pop(key, None) is not None:
            self._changes += 1
        return number

    def release(self, labels: Iterable[str], generation: int) -> None:
        key = tuple(sorted(labels))
        if key in self._numbers and key not in self._released:
            self._released[key] = generation  # lost in a crash, it is released again after the start

    def keep_only(self, used: Iterable[Iterable[str]], generation: int) -> None:
        keep = {tuple(sorted(labels)) for labels in used}
        for key in self._numbers:
            if key not in keep and key not in self._released:
                self._released[key] = generation

    def confirm(self, generation: int) -> None:
        for key in [key for key, since in self._released.items() if since <= generation]:
            del self._released[key]
            self._free[scope_of(key)].append(self._numbers.pop(key))

    def flush(self) -> None:
        """Nothing outlives this object."""

    def used(self, scope: Scope) -> int:
        """How many numbers of a range cannot be given now, those kept from reuse included."""
        return self._next[scope] - scope.value[0] - len(self._free[scope])

    def _take(self, scope: Scope) -> int:
        # Fresh numbers first: the longer a number rests, the surer nobody remembers it.
        number, last = self._next[scope], scope.value[1]
        if number <= last:
            self._next[scope] = number + 1
            return number
        if self._free[scope]:
            return self._free[scope].pop(0)
        raise AllocationError(f"all {last - scope.value[0] + 1} {scope.name.lower()} identities are in use")


_VERSION = 1


class FileAllocator(MemoryAllocator):
    """
    Numbers kept in a JSON file (0600), replaced as a whole.

    A missing or unreadable file is a lost state: a new domain begins. flush() writes; what was not flushed is
    given anew after a crash, so flush before a number leaves the process.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._path = Path(path)
        self._written = -1
        self._parts: dict[int, tuple[Labels, str]] = {}
        self.lost: str | None = None
        self._load()

    def flush(self) -> None:
        if self._changes == self._written:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, self._text().encode())
        except OSError as error:
            raise AllocationError(f"{self._path}: identities cannot be kept: {error.strerror}") from error
        self._written = self._changes

    def _text(self) -> str:
        """The state as JSON. A number's part is kept: most were there the last time."""
        before, self._parts = self._parts, {}
        for labels, number in self._numbers.items():
            known = before.get(number)
            if known is None or known[0] is not labels:
                known = labels, json.dumps([number, labels], separators=(",", ":"))
            self._parts[number] = known
        rest = {
            "version": _VERSION,
            "domain": self._domain,
            "next": {scope.name: number for scope, number in self._next.items()},
            "free": {scope.name: numbers for scope, numbers in self._free.items()},
            "released": list(self._released.items()),
        }
        numbers = ",".join(text for _, text in self._parts.values())
        return f'{json.dumps(rest, separators=(",", ":"))[:-1]},"numbers":[{numbers}]}}'

    def _load(self) -> None:
        try:
            state = json.loads(self._path.read_bytes())
            self._restore(state)
            self._written = self._changes
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.lost = f"{self._path}: unreadable, a new identity domain begins: {error}"
            super().__init__()

    def _restore(self, state: dict[str, Any]) -> None:
        if state["version"] != _VERSION:
            raise ValueError(f"version {state['version']!r} instead of {_VERSION}")
        domain = state["domain"]
        if not isinstance(domain, int) or not 0 < domain < 1 << 64:
            raise ValueError("domain out of range")
        self._domain = domain
        self._numbers = {tuple(map(str, labels)): _number(number) for number, labels in state["numbers"]}
        if len(set(self._numbers.values())) != len(self._numbers):
            raise ValueError("a number is given twice")
        self._next = {scope: _number(state["next"][scope.name]) for scope in Scope}
        self._free = {scope: [_number(number) for number in state["free"][scope.name]] for scope in Scope}
        self._released = {tuple(map(str, labels)): _number(since) for labels, since in state["released"]}
        self._check_ranges()

    def _check_ranges(self) -> None:
        given = set(self._numbers.values())
        for labels, number in self._numbers.items():
            first, last = scope_of(labels).value
            if not first <= number <= last or number >= self._next[scope_of(labels)]:
                raise ValueError(f"number {number} is outside what was given")
        for numbers in self._free.values():
            if given.intersection(numbers):
                raise ValueError("a number is both free and given")


def new_domain() -> int:
    """A random id, never 0."""
    return secrets.randbits(63) + 1


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a number")
    return value
