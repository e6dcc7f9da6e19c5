# SPDX-License-Identifier: Apache-2.0
"""Programs of a cgroup: all of them or none, but never fewer than there were."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ext_authz.agent.attachments import Attachment
from ext_authz.datapath import DatapathError
from ext_authz.datapath.addresses import packed

if TYPE_CHECKING:
    from ext_authz.agent.datapath_cgroups import Cgroups

pytestmark = pytest.mark.needs_loader


class Kernel:
    """Remembers links and rows; refuses the program named."""

    def __init__(self) -> None:
        self.links: set[str] = set()
        self.rows: dict[bytes, bytes] = {}
        self.refused = ""
        self.written = self.waited = 0

    def is_living(self, name: str) -> bool:
        return name in self.links

    def link(self, name: str, program: str, target: int, attach_type: int) -> None:
        if program == self.refused:
            raise DatapathError(f"{program}: no memory")
        self.links.add(name)

    def unlink(self, name: str) -> None:
        self.links.discard(name)

    def update(self, name: str, key: bytes, value: bytes) -> None:
        if len(self.rows) == 1 and key not in self.rows:
            raise DatapathError("map workloads: full")
        self.rows[key] = value
        self.written += 1

    def lookup(self, name: str, key: bytes) -> bytes:
        return self.rows[key]

    def grace(self) -> None:
        self.waited = self.written

    def delete(self, name: str, key: bytes) -> None:
        self.rows.pop(key, None)


class Engine:
    """Knows everybody by one number, and has each address as that endpoint's that is named."""

    identity = 500
    owner = "default/unit1"

    def resolve(self, address: str) -> tuple[int, int]:
        return self.identity, 0


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Names:
        def __init__(self, engine: Engine) -> None:
            self._engine = engine

        def endpoint(self, index: int) -> str:
            return self._engine.owner

    monkeypatch.setattr("ext_authz.agent.datapath_places.Identities", Names)


def unit(folder: Path, number: int = 1) -> Attachment:
    return Attachment("default", f"unit{number}", ("10.0.0.9",), number, cgroup=str(folder), cgroup_id=number)


def cgroups(kernel: Any) -> Cgroups:
    from ext_authz.agent.datapath_cgroups import Cgroups

    return Cgroups(kernel)


def test_a_cgroup_that_cannot_be_attached_whole_is_not_attached(tmp_path: Path) -> None:
    kernel = Kernel()
    kernel.refused = "workload_sendmsg6"
    with pytest.raises(DatapathError):
        cgroups(kernel).attach(unit(tmp_path))
    assert kernel.links == set()


def test_programs_that_were_there_stay_when_one_cannot_be_replaced(tmp_path: Path) -> None:
    """They judge a workload that runs: without them everything of it would pass."""
    kernel, attachment = Kernel(), unit(tmp_path)
    cgroups(kernel).attach(attachment)
    before = set(kernel.links)
    assert before == cgroups(kernel).names(attachment)
    kernel.refused = "workload_create"
    with pytest.raises(DatapathError):
        cgroups(kernel).attach(attachment)
    assert kernel.links == before
    kernel.refused = ""
    with pytest.raises(OSError, match="gone"):
        cgroups(kernel).attach(unit(tmp_path / "gone"))
    assert kernel.links == before


def test_a_row_that_does_not_fit_keeps_no_other_from_being_written(tmp_path: Path) -> None:
    kernel: Any = Kernel()
    engine: Any = Engine()
    kernel.rows[(2).to_bytes(8, "little")] = b"old"
    with pytest.raises(DatapathError, match="default/unit1: map workloads: full"):
        cgroups(kernel).tell([unit(tmp_path, 1), unit(tmp_path, 2)], engine)
    assert kernel.rows.keys() == {(2).to_bytes(8, "little")}
    assert kernel.rows[(2).to_bytes(8, "little")] != b"old"


def test_only_rows_that_change_are_written_each_after_a_grace_period(tmp_path: Path) -> None:
    """A program may still read the row before, whose memory the next one gets."""
    kernel: Any = Kernel()
    engine: Any = Engine()
    for _ in range(3):
        cgroups(kernel).tell([unit(tmp_path)], engine)
        assert (kernel.written, kernel.waited) == (1, 1)
    engine.identity = 501
    cgroups(kernel).tell([unit(tmp_path)], engine)
    assert (kernel.written, kernel.waited) == (2, 2)


def test_who_has_its_address_lends_it_no_identity(tmp_path: Path) -> None:
    """Sources gave it to another one, who may do what this one may not."""
    kernel: Any = Kernel()
    engine: Any = Engine()
    cgroups(kernel).tell([unit(tmp_path)], engine)
    (key,) = kernel.rows
    told = kernel.rows[key]
    assert (500).to_bytes(4, "little") in told
    engine.owner = "default/next"
    cgroups(kernel).tell([unit(tmp_path)], engine)
    assert (500).to_bytes(4, "little") not in kernel.rows[key]
    assert packed("10.0.0.9") not in kernel.rows[key]
