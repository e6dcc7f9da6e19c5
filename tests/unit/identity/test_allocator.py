# SPDX-License-Identifier: Apache-2.0
"""Laws of identity numbers: stable, scoped, never given twice, never reused too early."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ext_authz.identity.allocator import AllocationError, FileAllocator, MemoryAllocator, Scope, scope_of

POD = ("k8s:app=web", "k8s:io.kubernetes.pod.namespace=default")


@pytest.mark.parametrize(
    ("labels", "scope"),
    [
        (POD, Scope.GLOBAL),
        (("cidr:10.0.0.0/8", "reserved:world"), Scope.LOCAL),
        (("fqdn:a.test", "reserved:world"), Scope.LOCAL),
        (("cidrgroup:kind=x", "reserved:world-ipv4"), Scope.LOCAL),
        (("node:role=worker", "reserved:remote-node"), Scope.REMOTE_NODE),
        ((*POD, "cidr:10.0.0.1/32"), Scope.GLOBAL),
    ],
)
def test_the_scope_follows_from_the_labels(labels: tuple[str, ...], scope: Scope) -> None:
    assert scope_of(labels) is scope
    first, last = scope.value
    assert first <= MemoryAllocator().allocate(labels) <= last


def test_equal_labels_have_one_number_whatever_their_order() -> None:
    allocator = MemoryAllocator()
    assert allocator.allocate(POD) == allocator.allocate(POD[::-1]) == 256
    assert allocator.allocate(("k8s:app=other",)) == 257


def test_a_full_range_is_an_error_and_keeps_what_was_given() -> None:
    allocator = MemoryAllocator()
    for number in range(256, 65536):
        assert allocator.allocate((f"k8s:n={number}",)) == number
    with pytest.raises(AllocationError):
        allocator.allocate(("k8s:one=more",))
    assert allocator.allocate(("k8s:n=300",)) == 300
    assert allocator.allocate(("cidr:10.0.0.0/8", "reserved:world")) == 16777217


def test_a_released_number_rests_until_its_generation_is_confirmed() -> None:
    allocator = MemoryAllocator()
    for number in range(256, 65536):
        allocator.allocate((f"k8s:n={number}",))
    allocator.release(("k8s:n=300",), generation=5)
    allocator.confirm(4)
    with pytest.raises(AllocationError):
        allocator.allocate(("k8s:one=more",))
    allocator.confirm(5)
    assert allocator.allocate(("k8s:one=more",)) == 300


def test_labels_that_come_back_before_that_keep_their_number() -> None:
    allocator = MemoryAllocator()
    number = allocator.allocate(POD)
    allocator.release(POD, generation=1)
    assert allocator.allocate(POD) == number
    allocator.confirm(9)
    assert allocator.allocate(POD) == number


def test_numbers_and_domain_outlive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "identities.json"
    first = FileAllocator(path)
    numbers = [first.allocate((f"k8s:n={index}",)) for index in range(5)]
    first.flush()
    second = FileAllocator(path)
    assert second.domain == first.domain
    assert [second.allocate((f"k8s:n={index}",)) for index in (4, 0)] == [numbers[4], numbers[0]]
    assert second.allocate(("k8s:new=1",)) not in numbers


def test_the_file_is_private_and_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "identities.json"
    allocator = FileAllocator(path)
    allocator.allocate(POD)
    allocator.flush()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.stat().st_ino
    allocator.flush()
    assert path.stat().st_ino == before
    allocator.allocate(("k8s:app=more",))
    allocator.flush()
    assert path.stat().st_ino != before
    assert os.listdir(tmp_path) == ["identities.json"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2}',
        b'{"version":1,"domain":1,"next":{"GLOBAL":300,"LOCAL":16777217,"REMOTE_NODE":33554433},'
        b'"free":{"GLOBAL":[],"LOCAL":[],"REMOTE_NODE":[]},"numbers":[[256,["k8s:a=1"]],[256,["k8s:b=1"]]],"released":[]}',
        b'{"version":1,"domain":1,"next":{"GLOBAL":300,"LOCAL":16777217,"REMOTE_NODE":33554433},'
        b'"free":{"GLOBAL":[],"LOCAL":[],"REMOTE_NODE":[]},"numbers":[[1,["k8s:a=1"]]],"released":[]}',
    ],
)
def test_a_lost_state_begins_another_domain(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "identities.json"
    old = FileAllocator(path)
    old.allocate(POD)
    old.flush()
    path.write_bytes(damage)
    new = FileAllocator(path)
    assert new.lost
    assert new.domain not in (0, 1, old.domain)
    assert new.allocate(("k8s:x=y",)) == 256


def test_a_state_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    allocator = FileAllocator(blocked / "identities.json")
    number = allocator.allocate(POD)
    with pytest.raises(AllocationError):
        allocator.flush()
    assert allocator.allocate(POD) == number


def test_what_an_earlier_process_left_over_is_given_again_once_confirmed(tmp_path: Path) -> None:
    path = tmp_path / "identities.json"
    old = FileAllocator(path)
    kept, left = old.allocate(POD), old.allocate(("k8s:gone=1",))
    old.release(("k8s:gone=1",), generation=700)
    old.flush()
    new = FileAllocator(path)
    assert new.allocate(POD) == kept
    new.keep_only([POD], generation=701)
    new.confirm(699)
    assert not new._free[Scope.GLOBAL]
    new.confirm(700)
    new.allocate(("k8s:new=1",))  # what is freed is written with the next number
    new.flush()
    again = FileAllocator(path)
    assert again.allocate(("k8s:fresh=1",)) != left
    assert left in again._free[Scope.GLOBAL]
