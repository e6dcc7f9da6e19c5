# SPDX-License-Identifier: Apache-2.0
"""Laws of the sources that were handed in: whole or not at all, and read back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from sourcing import BAD_RULE, World, policy

from ext_authz.agent.applied import LIMIT, AppliedStore, ApplyError
from ext_authz.agent.sources import Sources
from ext_authz.model.types import Settings

ONE = [("/a/x.yaml", b"x"), ("/a/y.yaml", b"y")]


@pytest.fixture
def store(tmp_path: Path) -> AppliedStore:
    return AppliedStore(tmp_path / "applied")


def contents(store: AppliedStore) -> dict[str, list[tuple[str, bytes]]]:
    return {source.name: list(source.files) for source in store.read()}


def test_what_was_put_is_read_back_by_another_process(store: AppliedStore, tmp_path: Path) -> None:
    store.put("/a", ONE)
    store.put("/b.yaml", [("/b.yaml", b"b")])
    assert contents(AppliedStore(tmp_path / "applied")) == {"/a": ONE, "/b.yaml": [("/b.yaml", b"b")]}


def test_the_same_name_replaces_whole_and_leaves_nothing(store: AppliedStore, tmp_path: Path) -> None:
    store.put("/a", ONE)
    assert contents(store) == {"/a": ONE}
    store.put("/a", [("/a/z.yaml", b"z")])
    assert contents(store) == {"/a": [("/a/z.yaml", b"z")]}
    assert len([path for path in (tmp_path / "applied").rglob("*") if path.is_file()]) == 3


def test_a_removed_source_is_gone(store: AppliedStore) -> None:
    store.put("/a", ONE)
    assert store.remove("/a")
    assert contents(store) == {}
    assert not store.remove("/a")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("a", [("a", b"x")]),
        ("/a", []),
        ("/a", [("/a/x.yaml", b" \n")]),
        ("/a", [("/b/x.yaml", b"x")]),
        ("/a", [("/ab.yaml", b"x")]),
        ("/a", [("/a/x.yaml", b"x"), ("/a/x.yaml", b"y")]),
        ("/a", [("/a/x.yaml", b"x" * (LIMIT + 1))]),
        ("/a\0", [("/a\0", b"x")]),
        ("/a\udcff", [("/a\udcff", b"x")]),
        ("/a", [("/a/\udcff.yaml", b"x")]),
    ],
)
def test_what_is_no_source_changes_nothing(store: AppliedStore, name: str, files: list[tuple[str, bytes]]) -> None:
    store.put("/a", ONE)
    with pytest.raises(ApplyError):
        store.put(name, files)
    assert contents(store) == {"/a": ONE}


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"format": 2}', '{"format": 1, "name": "/a", "files": [["/a", "../x"]]}']
)
def test_a_damaged_index_is_a_problem_of_that_name(store: AppliedStore, tmp_path: Path, damage: str) -> None:
    store.put("/a", ONE)
    store.put("/b", [("/b/x.yaml", b"x")])
    next(path for path in (tmp_path / "applied").glob("*/source.json") if '"/a"' in path.read_text()).write_text(damage)
    first, second = AppliedStore(tmp_path / "applied").read()
    assert (first.name, first.files) == ("/a", ())
    assert "cannot be read back" in first.problem
    assert not second.problem


def test_a_content_that_changed_is_a_problem(store: AppliedStore, tmp_path: Path) -> None:
    store.put("/a", [("/a/x.yaml", b"x")])
    for path in (tmp_path / "applied").glob("*/*"):
        if path.read_bytes() == b"x":
            path.write_bytes(b"y")
    assert "holds something else" in AppliedStore(tmp_path / "applied").read()[0].problem


def test_a_source_that_was_never_finished_is_none(store: AppliedStore, tmp_path: Path) -> None:
    store.put("/a", ONE)
    next((tmp_path / "applied").glob("*/source.json")).unlink()
    assert contents(AppliedStore(tmp_path / "applied")) == {"/a": []}
    assert not AppliedStore(tmp_path / "applied").read()[0].problem


# ---- as sources ----


class Handed(World):
    """A world with a store beside its folders."""

    def restart(self) -> None:
        super().restart()
        self.applied = AppliedStore(self.folder / "applied")
        paths = {"policies": [self.policies], "endpoints": [self.endpoints]}
        self.sources = Sources(self.kept, paths, Settings(), None, self.applied)


@pytest.fixture
def world(tmp_path: Path) -> Handed:
    made = Handed(tmp_path)
    made.write("policies/web.yaml", policy())
    made.look()
    assert made.passes("client")
    assert not made.passes("other")
    return made


def hand(world: Handed, text: str, name: str = "/mine/extra.yaml") -> None:
    world.applied.put(name, [(name, text.encode())])


def test_it_counts_beside_the_others_and_is_listed(world: Handed) -> None:
    hand(world, policy("extra", "web", "other"))
    view = world.look()
    assert world.passes("other")
    assert [(s.role, s.path, s.files, s.objects) for s in view.sources][-1] == ("applied", "/mine/extra.yaml", 1, 1)
    world.applied.remove("/mine/extra.yaml")
    world.look()
    assert not world.passes("other")


def test_a_bad_object_keeps_its_last_version_over_a_restart(world: Handed) -> None:
    hand(world, policy("extra", "web", "other"))
    world.look()
    hand(world, BAD_RULE.replace("name: web", "name: extra"))
    for restart in (False, True):
        if restart:
            world.restart()
        view = world.look()
        assert view.errors[0].origin.file == "/mine/extra.yaml"
        assert world.passes("other")


def test_an_object_of_two_sources_keeps_its_last_version(world: Handed) -> None:
    hand(world, policy(peer="other"))
    view = world.look()
    assert {error.origin.file for error in view.errors} == {"/mine/extra.yaml", str(world.policies / "web.yaml")}
    assert world.passes("client")
    assert not world.passes("other")


def test_of_a_file_that_another_source_reads_the_file_counts(world: Handed) -> None:
    hand(world, policy(peer="other"), str(world.policies / "web.yaml"))
    view = world.look()
    assert "read by another source" in view.errors[0].reason
    assert world.passes("client")
    assert not world.passes("other")


def test_damage_drops_nothing_that_was_good(world: Handed) -> None:
    hand(world, policy("extra", "web", "other"))
    world.look()
    for path in (world.folder / "applied").glob("*/*"):
        path.write_bytes(b"\xff")
    for restart in (False, True):
        if restart:
            world.restart()
        assert world.look().errors
        assert world.passes("other")


def test_what_was_never_read_closes_the_node(world: Handed) -> None:
    hand(world, policy("extra", "web", "other"))
    for path in (world.folder / "applied").glob("*/source.json"):
        path.write_bytes(b"{")
    assert world.look().world.closed
    assert not world.passes("client")
