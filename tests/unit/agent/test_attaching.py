# SPDX-License-Identifier: Apache-2.0
"""Attaching step by step: whatever fails, store and kernel say the same afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ext_authz.agent.attaching import Attaching, Wanted
from ext_authz.agent.attachments import AttachError, Attachment, AttachmentStore
from ext_authz.agent.datapath import DatapathError


class Kernel:
    """Remembers what was asked; refuses the addresses named."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.refused = ""
        self.stranger = ""

    async def attach(self, attachment: Attachment) -> None:
        self.asked.append(("attach", attachment.addresses[0]))
        if attachment.addresses[0] == self.refused:
            raise DatapathError("no memory")

    async def detach(self, attachment: Attachment) -> None:
        self.asked.append(("detach", attachment.addresses[0]))

    async def publish(self, revision: int) -> None:
        assert revision == 7

    async def resolve(self, addresses: Sequence[str]) -> list[dict[str, Any]]:
        return [{"identity": 500, "endpoint": "" if one == self.stranger else "default/unit"} for one in addresses]


class Place:
    """A store, and folders that pass for cgroups."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kernel = folder, Kernel()
        self.store = AttachmentStore(folder / "attached")
        datapath: Any = self.kernel
        self.attaching = Attaching(self.store, datapath, self._rebuilt)

    async def _rebuilt(self, since: float) -> dict[str, Any]:
        return {"attached_errors": {}, "revision": 7}

    def cgroup(self, name: str) -> Path:
        made = self.folder / name
        made.mkdir()
        for file in ("cgroup.procs", "cgroup.type"):
            (made / file).touch()
        return made

    def attach(self, cgroup: Path, address: str) -> None:
        wanted = Wanted("default", "unit", cgroup=str(cgroup), addresses=(address,), labels={"app": "unit"})
        asyncio.run(self.attaching.attach(wanted))

    @property
    def kept(self) -> list[str]:
        return [f"{one.addresses[0]} {one.stage}" for one in self.store.all()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_of_an_endpoint_that_is_refused_nothing_stays(place: Place) -> None:
    place.kernel.refused = "10.0.0.9"
    with pytest.raises(AttachError, match="no memory"):
        place.attach(place.cgroup("unit"), "10.0.0.9")
    assert place.kernel.asked == [("attach", "10.0.0.9"), ("detach", "10.0.0.9")]
    assert place.kept == []


@pytest.mark.parametrize("step", ["attach", "confirm"])
def test_what_was_attached_is_as_before_when_a_change_is_refused(place: Place, step: str) -> None:
    cgroup = place.cgroup("unit")
    place.attach(cgroup, "10.0.0.9")
    setattr(place.kernel, "refused" if step == "attach" else "stranger", "10.0.0.10")
    with pytest.raises(AttachError):
        place.attach(cgroup, "10.0.0.10")
    assert place.kernel.asked[-2:] == [("attach", "10.0.0.10"), ("attach", "10.0.0.9")]
    assert ("detach", "10.0.0.9") not in place.kernel.asked
    assert place.kept == ["10.0.0.9 attached"]


def test_what_is_gone_is_detached_before_its_name_is_attached_elsewhere(place: Place) -> None:
    first = place.cgroup("first")
    place.attach(first, "10.0.0.9")
    second = place.cgroup("second")
    for file in first.iterdir():
        file.unlink()
    first.rmdir()
    place.attach(second, "10.0.0.10")
    assert place.kernel.asked == [("attach", "10.0.0.9"), ("detach", "10.0.0.9"), ("attach", "10.0.0.10")]
    assert place.kept == ["10.0.0.10 attached"]
