# SPDX-License-Identifier: Apache-2.0
"""
The compiler as a whole: a world in, a snapshot out. Pure but for the identity numbers it asks an allocator for.

A `Compiler` is kept by whoever compiles again and again: what a change did not touch is not resolved, merged or
packed again. What cannot be compiled is reported and closes its own subjects, unless they have a last good policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ext_authz.compiler.pack import Packer
from ext_authz.compiler.resolve import Resolver
from ext_authz.identity.allocator import Allocator
from ext_authz.model.types import PolicyError, Settings, World


@dataclass(frozen=True, slots=True)
class Compiled:
    """
    A snapshot, in parts that follow each other, and what was wrong with the world it came from.

    rejected: identities whose policy could not be packed: they have their last good one, or are isolated.
    """

    parts: tuple[bytes, ...]
    errors: tuple[PolicyError, ...] = ()
    warnings: tuple[PolicyError, ...] = ()
    revision: int = 0
    digest: str = ""
    rejected: frozenset[int] = frozenset()

    @property
    def snapshot(self) -> bytes:
        """The whole file."""
        return b"".join(self.parts)


class Compiler:
    """Compiles one world after another, each at the cost of what changed. Not thread-safe."""

    def __init__(self, allocator: Allocator, *, revision: int = 0) -> None:
        """
        Args:
            revision: Of the last snapshot published; a world that differs gets the next one.
        """
        self._allocator = allocator
        self._settings: Settings | None = None
        self._resolver = Resolver(allocator)
        self._packer = Packer(revision)

    @property
    def revision(self) -> int:
        """Of the last snapshot compiled."""
        return self._packer.revision

    def compile(self, world: World) -> Compiled:
        """
        Compile a world. Equal content gives the same snapshot again.

        Raises:
            AllocationError: The identity numbers are used up, or cannot be kept; the last snapshot stays good.
        """
        if world.settings != self._settings:
            # A policy that was good under other settings, perhaps open or for audit, is none to fall back on.
            self._resolver, self._settings = Resolver(self._allocator), world.settings
            self._packer.forget()
        resolved = self._resolver.update(world, generation=self._packer.revision + 1)
        packed = self._packer.pack(resolved, secrets=world.secrets)
        return Compiled(
            packed.parts,
            _unique([*resolved.errors, *packed.errors]),
            _unique([*resolved.warnings, *packed.warnings]),
            packed.revision,
            packed.digest.hex(),
            packed.rejected,
        )


def compile_world(world: World, allocator: Allocator, *, revision: int = 1) -> Compiled:
    """Compile one world from scratch; equal worlds and numbers give equal bytes."""
    return Compiler(allocator, revision=revision - 1).compile(world)


def _unique(errors: Iterable[PolicyError]) -> tuple[PolicyError, ...]:
    """Each error once, in the order of files and lines."""
    found = {(e.origin.file, e.origin.line, e.origin.column, e.field, e.reason): e for e in errors}
    return tuple(found[key] for key in sorted(found))
