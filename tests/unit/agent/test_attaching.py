# SPDX-License-Identifier: Apache-2.0
"""Attaching step by step: whatever fails, store and kernel say the same afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ext_authz.agent.attaching import Attaching, Wanted
from ext_authz.agent.attachments import AttachError, Attachment, AttachmentStore, Stage
from ext_authz.agent.datapath import DatapathError


class Kernel:
    """Remembers what was asked; refuses the addresses named."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.refused = ("", "")
        self.stranger = ""
        self.names: dict[str, str] = {}

    async def attach(self, attachment: Attachment) -> None:
        self.asked.append((str(attachment.stage), attachment.addresses[0]))
        if self.asked[-1] == self.refused:
            raise DatapathError("no memory")

    async def detach(self, attachment: Attachment) -> None:
        self.asked.append(("detach", attachment.addresses[0]))
        if self.asked[-1] == self.refused:
            raise DatapathError("busy")

    async def publish(self, revision: int) -> None:
        self.asked.append(("publish", str(revision)))

    async def resolve(self, addresses: Sequence[str]) -> list[dict[str, Any]]:
        names = {address: f"default/{name}" for name, address in self.names.items()}
        return [
            {"identity": 500, "endpoint": "" if one == self.stranger else names.get(one, "default/unit")}
            for one in addresses
        ]


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

    def attach(self, cgroup: Path, address: str, name: str = "unit") -> None:
        wanted = Wanted("default", name, cgroup=str(cgroup), addresses=(address,), labels={"app": "unit"})
        asyncio.run(self.attaching.attach(wanted))

    def remove(self, cgroup: Path) -> None:
        """As it goes when its workload has ended."""
        for file in cgroup.iterdir():
            file.unlink()
        cgroup.rmdir()

    @property
    def kept(self) -> list[str]:
        return [f"{one.addresses[0]} {one.stage}" for one in self.store.all()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_of_an_endpoint_that_is_refused_nothing_stays(place: Place) -> None:
    place.kernel.refused = ("coming", "10.0.0.9")
    with pytest.raises(AttachError, match="no memory"):
        place.attach(place.cgroup("unit"), "10.0.0.9")
    assert place.kernel.asked == [("coming", "10.0.0.9"), ("detach", "10.0.0.9")]
    assert place.kept == []


def test_an_address_is_a_workloads_once_its_identity_is_in_force(place: Place) -> None:
    """Before that the revision in force may know it as somebody else's."""
    cgroup = place.cgroup("unit")
    place.attach(cgroup, "10.0.0.9")
    assert place.kernel.asked == [("coming", "10.0.0.9"), ("publish", "7"), ("attached", "10.0.0.9")]
    place.attach(cgroup, "10.0.0.9")  # it stays its own
    assert place.kernel.asked[3:] == [("attached", "10.0.0.9"), ("publish", "7"), ("attached", "10.0.0.9")]


@pytest.mark.parametrize("step", ["coming", "confirm", "attached"])
def test_what_was_attached_is_as_before_when_a_change_is_refused(place: Place, step: str) -> None:
    cgroup = place.cgroup("unit")
    place.attach(cgroup, "10.0.0.9")
    if step == "confirm":
        place.kernel.stranger = "10.0.0.10"
    else:
        place.kernel.refused = (step, "10.0.0.10")
    with pytest.raises(AttachError):
        place.attach(cgroup, "10.0.0.10")
    assert place.kernel.asked[3] == ("coming", "10.0.0.10")
    assert place.kernel.asked[-1] == ("attached", "10.0.0.9")
    assert ("detach", "10.0.0.9") not in place.kernel.asked
    assert place.kept == ["10.0.0.9 attached"]


def test_what_is_gone_is_detached_before_its_name_is_attached_elsewhere(place: Place) -> None:
    first = place.cgroup("first")
    place.attach(first, "10.0.0.9")
    second = place.cgroup("second")
    place.remove(first)
    place.attach(second, "10.0.0.10")
    assert place.kernel.asked[3:5] == [("detach", "10.0.0.9"), ("coming", "10.0.0.10")]
    assert place.kept == ["10.0.0.10 attached"]


def test_all_who_are_gone_are_let_go_in_one_revision(place: Place) -> None:
    """One after the other they would be known long after they were gone, where many come and go."""
    places = {name: place.cgroup(name) for name in ("first", "second", "third")}
    for number, (name, cgroup) in enumerate(places.items()):
        place.kernel.names[name] = f"10.0.0.{number}"
        place.attach(cgroup, place.kernel.names[name], name)
    place.remove(places["first"])
    place.remove(places["third"])
    place.kernel.asked.clear()
    asyncio.run(place.attaching.let_go())
    assert place.kernel.asked == [("publish", "7"), ("detach", "10.0.0.0"), ("detach", "10.0.0.2")]
    assert place.kept == ["10.0.0.1 attached"]


def test_who_cannot_be_let_go_is_told_of_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried every second, also where the data path is off for good."""
    caplog.set_level("INFO")
    cgroup = place.cgroup("unit")
    place.attach(cgroup, "10.0.0.9")
    place.remove(cgroup)
    place.kernel.refused = ("detach", "10.0.0.9")
    for _ in range(3):
        asyncio.run(place.attaching.let_go())
    said = [record.getMessage() for record in caplog.records]
    assert [sum(text in one for one in said) for text in ("is gone, detaching it", "can be detached")] == [1, 1]
    place.kernel.refused = ("", "")
    asyncio.run(place.attaching.let_go())
    assert place.kept == []


def test_a_name_that_is_anothers_by_now_is_not_let_go(place: Place) -> None:
    """Who was seen to be gone may have come back under its name before its turn comes."""
    first, second = place.cgroup("first"), place.cgroup("second")
    place.attach(first, "10.0.0.9")
    place.remove(first)

    async def late() -> None:
        attaching = place.attaching
        wanted = Wanted("default", "unit", cgroup=str(second), addresses=("10.0.0.10",), labels={"app": "unit"})
        await asyncio.gather(attaching.attach(wanted), attaching.let_go())

    asyncio.run(late())
    assert place.kept == ["10.0.0.10 attached"]


def test_what_a_node_before_us_had_begun_is_tried_until_it_is_done(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    cgroup = place.cgroup("unit")
    place.attach(cgroup, "10.0.0.9")
    (one,) = place.store.all()
    place.store.put(replace(one, stage=Stage.COMING))
    for step in (("coming", "10.0.0.9"), ("attached", "10.0.0.9")):
        place.kernel.refused = step
        asyncio.run(place.attaching.resume())
        assert place.kept == ["10.0.0.9 coming"]  # it has no identity, so that it is denied
    asyncio.run(place.attaching.resume())
    assert len([record for record in caplog.records if "half attached" in record.getMessage()]) == 2
    place.kernel.refused = ("", "")
    asyncio.run(place.attaching.resume())
    assert place.kept == ["10.0.0.9 attached"]
    assert place.kernel.asked[-1] == ("attached", "10.0.0.9")


def test_what_was_half_attached_and_is_gone_is_attached_to_nobody_else(place: Place) -> None:
    """After another start of the host its numbers mean something else."""
    place.attach(place.cgroup("unit"), "10.0.0.9")
    (one,) = place.store.all()
    place.store.put(replace(one, stage=Stage.COMING, boot="an earlier one"))
    place.kernel.asked.clear()
    asyncio.run(place.attaching.resume())
    assert place.kernel.asked == [("publish", "7"), ("detach", "10.0.0.9")]
    assert place.kept == []


def test_programs_that_did_not_come_off_are_tried_again(place: Place) -> None:
    place.attach(place.cgroup("unit"), "10.0.0.9")
    place.kernel.refused = ("detach", "10.0.0.9")
    with pytest.raises(AttachError, match="its programs stay"):
        asyncio.run(place.attaching.detach("default", "unit"))
    asyncio.run(place.attaching.resume())
    assert place.kept == ["10.0.0.9 leaving"]
    place.kernel.refused = ("", "")
    asyncio.run(place.attaching.resume())
    assert place.kept == []
