# SPDX-License-Identifier: Apache-2.0
"""
What is pinned where.

    ROOT/sets/N/MAP      maps that belong together: one layout, one identity domain, one size each
    ROOT/live            link to the set that programs in force read; switched by one rename
    ROOT/next            the same while the programs are replaced: the set that is filled and will be `live`
    ROOT/links/NAME      links that hold programs on their hooks
    ROOT/clsact/N-M      interfaces with filters instead of links; M is 1 if the qdisc is ours
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pins:
    """Names in the bpffs of one data path."""

    root: Path

    @property
    def live(self) -> Path:
        return self.root / "live"

    @property
    def next(self) -> Path:
        return self.root / "next"

    @property
    def links(self) -> Path:
        return self.root / "links"

    @property
    def clsact(self) -> Path:
        return self.root / "clsact"

    @property
    def sets(self) -> Path:
        return self.root / "sets"

    def prepare(self) -> None:
        for folder in (self.sets, self.links, self.clsact):
            folder.mkdir(mode=0o700, exist_ok=True)

    def live_set(self) -> Path | None:
        """The set in force, or None."""
        try:
            found = self.root / os.readlink(self.live)
        except OSError:
            return None
        return found if found.is_dir() else None

    def new_set(self) -> Path:
        """An empty set beside the others."""
        numbers = [int(one.name) for one in self.sets.iterdir() if one.name.isdigit()]
        made = self.sets / str(max(numbers, default=0) + 1)
        made.mkdir(mode=0o700)
        return made

    def stage(self, chosen: Path) -> None:
        """Write down that a set is to follow: from here on there is no way back, whoever dies."""
        with contextlib.suppress(FileNotFoundError):
            self.next.unlink()
        self.next.symlink_to(chosen.relative_to(self.root))

    def go_on(self) -> None:
        """Point `live` at the set that is to follow, at once for whoever opens maps by that name; if there is one."""
        if self.next.is_dir():
            os.replace(self.next, self.live)

    def drop_others(self, keep: Path | None) -> None:
        """Unpin every set but one; what programs still use lives until they are gone."""
        for one in self.sets.iterdir():
            if one != keep:
                self.drop(one)

    def drop(self, one: Path) -> None:
        """Unpin a set."""
        shutil.rmtree(one)

    def link_names(self) -> Iterator[str]:
        if self.links.is_dir():
            yield from sorted(one.name for one in self.links.iterdir())

    def filters(self) -> dict[int, bool]:
        """Interfaces with filters of ours; True where the qdisc is ours, too."""
        if not self.clsact.is_dir():
            return {}
        pairs = (one.name.split("-") for one in self.clsact.iterdir())
        return {int(ifindex): made == "1" for ifindex, made in pairs}

    def add_filter(self, ifindex: int, made: bool) -> None:
        if ifindex not in self.filters():
            (self.clsact / f"{ifindex}-{int(made)}").mkdir(mode=0o700)

    def remove_filter(self, ifindex: int) -> None:
        for made in (0, 1):
            with contextlib.suppress(FileNotFoundError):
                (self.clsact / f"{ifindex}-{made}").rmdir()

    def clear(self) -> None:
        """Everything of ours away."""
        for folder in (self.links, self.clsact, self.sets):
            if folder.is_dir():
                shutil.rmtree(folder)
        for link in (self.live, self.next):
            with contextlib.suppress(FileNotFoundError):
                link.unlink()
