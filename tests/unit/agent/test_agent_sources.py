# SPDX-License-Identifier: Apache-2.0
"""
Laws of the sources: an error is never a deletion, and a deletion is never an error.

Each law is checked by what the compiled snapshot decides, and again after a restart that leaves only the disk.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sourcing import BAD_RULE, BAD_SELECTOR, World, pods, policy

from ext_authz.agent import kept
from ext_authz.agent.contents import FileCache
from ext_authz.model.types import PolicyError


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.write("policies/web.yaml", policy())
    made.write("policies/db.yaml", policy("db", "db", "web"))
    view = made.look()
    assert not view.errors, view.errors
    assert made.passes("client")
    assert not made.passes("other")
    return made


def looks(world: World) -> Iterator[None]:
    """The law must hold at once, on the next look, and after a restart."""
    for restart in (False, False, True):
        if restart:
            world.restart()
        yield


def holds_as_before(world: World) -> None:
    assert world.passes("client")
    assert not world.passes("other")


def test_an_emptied_folder_keeps_every_policy(world: World) -> None:
    for path in world.policies.iterdir():
        path.unlink()
    for _ in looks(world):
        view = world.look()
        holds_as_before(world)
        assert "holds no files" in view.errors[0].reason
        assert len(view.kept) == 2


def test_an_unmounted_folder_keeps_every_policy(world: World) -> None:
    shutil.rmtree(world.policies)
    for _ in looks(world):
        assert "missing" in world.look().errors[0].reason
        holds_as_before(world)


def test_an_unmounted_endpoints_folder_keeps_every_endpoint(world: World) -> None:
    shutil.rmtree(world.endpoints)
    for _ in looks(world):
        assert world.look().errors
        holds_as_before(world)


def test_files_that_became_empty_keep_their_policies(world: World) -> None:
    """As a writer that was cut off leaves them."""
    world.write("policies/web.yaml", "")
    for _ in looks(world):
        assert "suddenly empty" in world.look().errors[0].reason
        holds_as_before(world)


def test_a_folder_of_empty_files_keeps_every_policy(world: World) -> None:
    for path in world.policies.iterdir():
        path.write_text("\n")
    for _ in looks(world):
        assert world.look().errors
        holds_as_before(world)


def test_a_subfolder_that_became_empty_keeps_its_policies(world: World) -> None:
    world.write("policies/mounted/other.yaml", policy("extra", "web", "other"))
    world.look()
    assert world.passes("other")
    (world.policies / "mounted/other.yaml").unlink()
    for _ in looks(world):
        assert world.look().errors
        assert world.passes("other")
    (world.policies / "mounted").rmdir()
    assert not world.look().errors
    assert not world.passes("other")


def test_a_file_that_cannot_be_read_keeps_its_policy(world: World) -> None:
    """A link to itself: reading fails for root too."""
    (world.policies / "web.yaml").unlink()
    (world.policies / "web.yaml").symlink_to(world.policies / "web.yaml")
    for _ in looks(world):
        assert world.look().errors
        holds_as_before(world)


def test_a_removed_file_is_a_deletion(world: World) -> None:
    (world.policies / "web.yaml").unlink()
    for _ in looks(world):
        assert not world.look().errors
        assert world.passes("other")


def test_a_removed_document_is_a_deletion(world: World) -> None:
    world.write("policies/web.yaml", policy() + policy("more", "web", "other"))
    world.look()
    assert world.passes("other")
    world.write("policies/web.yaml", policy())
    for _ in looks(world):
        assert not world.look().errors
        assert not world.passes("other")


def test_a_moved_policy_is_no_deletion(world: World) -> None:
    (world.policies / "web.yaml").rename(world.policies / "moved.yaml")
    for _ in looks(world):
        assert not world.look().errors
        holds_as_before(world)


@pytest.mark.parametrize("bad", [BAD_RULE, BAD_SELECTOR, "a: [", "\x00", "just text\n"])
def test_a_bad_object_keeps_its_own_last_version(world: World, bad: str) -> None:
    world.write("policies/web.yaml", bad)
    for _ in looks(world):
        view = world.look()
        assert view.errors
        assert view.kept == ["CiliumNetworkPolicy default/web"]
        assert not view.world.closed
        holds_as_before(world)


def test_a_bad_object_freezes_no_other(world: World) -> None:
    world.write("policies/web.yaml", "a: [")
    world.look()
    world.write("policies/db.yaml", policy("db", "db", "other"))
    world.look()
    holds_as_before(world)
    assert world.passes("other", "db")
    assert not world.passes("web", "db")


def test_a_bad_document_freezes_no_other_of_its_file(world: World) -> None:
    both = policy() + policy("db2", "db", "other")
    world.write("policies/web.yaml", both)
    world.look()
    world.write("policies/web.yaml", policy() + policy("db2", "db", "client").replace("spec:", "spec: ["))
    view = world.look()
    assert view.kept == ["CiliumNetworkPolicy default/db2"]
    holds_as_before(world)
    assert world.passes("other", "db")


def test_a_mended_object_counts_again(world: World) -> None:
    world.write("policies/web.yaml", BAD_RULE)
    world.look()
    world.write("policies/web.yaml", policy(peer="other"))
    view = world.look()
    assert not view.errors
    assert not view.kept
    assert world.passes("other")
    assert not world.passes("client")


def test_a_bad_object_without_last_version_isolates_whom_it_selects(world: World) -> None:
    world.write("policies/new.yaml", BAD_RULE.replace("name: web", "name: new").replace("app: web", "app: other"))
    for _ in looks(world):
        world.look()
        assert not world.passes("client", "other")
        holds_as_before(world)


def test_an_unreadable_selector_without_last_version_closes_the_node(world: World) -> None:
    world.write("policies/new.yaml", BAD_SELECTOR.replace("name: web", "name: new"))
    for _ in looks(world):
        assert world.look().world.closed
        assert not world.passes("client")
        assert not world.passes("client", "other")


def test_a_new_broken_document_closes_the_node_although_others_are_kept(world: World) -> None:
    world.write("policies/web.yaml", policy() + "---\na: [")
    assert world.look().world.closed


def test_two_objects_of_one_name_keep_the_version_before(world: World) -> None:
    world.write("policies/again.yaml", policy(peer="other"))
    for _ in looks(world):
        assert world.look().errors
        holds_as_before(world)


def test_a_bad_pod_keeps_its_last_version(world: World) -> None:
    world.write("endpoints/pods.yaml", pods().replace("10.0.0.1}", "10.0.0.999}", 1))
    for _ in looks(world):
        assert world.look().errors
        holds_as_before(world)


def test_a_removed_pod_is_gone(world: World) -> None:
    world.write("endpoints/pods.yaml", pods("other", "web", "db"))
    assert not world.look().errors
    assert not world.passes("client")


def test_sources_never_read_close_the_node(tmp_path: Path) -> None:
    world = World(tmp_path)
    for _ in looks(world):
        assert world.look().world.closed
        assert not world.passes("client")
    world.write("policies/web.yaml", policy())
    assert not world.look().world.closed
    holds_as_before(world)


def test_what_is_kept_is_private(world: World) -> None:
    pages = list(world.kept.glob("*.json"))
    assert pages
    assert all(page.stat().st_mode & 0o077 == 0 for page in pages)


def test_a_damaged_page_invents_nothing(world: World) -> None:
    for page in world.kept.glob("*.json"):
        page.write_bytes(b"{" + page.read_bytes()[5:50])
    world.restart()
    for path in world.policies.iterdir():
        path.unlink()
    assert world.look().world.closed
    assert not world.passes("client")


def test_what_never_was_there_is_not_said_to_stand_in(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.policies.rmdir()
    view = world.look()
    assert "never held a good object" in view.errors[0].reason
    assert not view.kept


def once_before(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[], object]) -> None:
    """Something changes while folders are read: just before this file is."""
    read, waiting = FileCache.read, [change]

    def meanwhile(cache: FileCache, path: str) -> bytes | PolicyError:
        if path.endswith(name) and waiting:
            waiting.pop()()
        return read(cache, path)

    monkeypatch.setattr(FileCache, "read", meanwhile)


def test_a_file_that_moves_while_folders_are_read_is_not_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """To where had been looked already."""
    for folder in "amz":
        world.write(f"policies/{folder}/some.yaml", policy(f"some-{folder}", "web", "extra"))
    world.write("policies/z/web.yaml", (world.policies / "web.yaml").read_text())
    (world.policies / "web.yaml").unlink()
    world.look()
    holds_as_before(world)
    target = world.policies / "a" / "web.yaml"
    once_before(monkeypatch, "m/some.yaml", lambda: (world.policies / "z" / "web.yaml").rename(target))
    assert not world.look().errors
    assert target.exists()
    holds_as_before(world)


def test_a_file_that_goes_while_it_is_read_is_a_deletion(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    once_before(monkeypatch, "web.yaml", (world.policies / "web.yaml").unlink)
    view = world.look()
    assert (view.errors, view.kept) == ([], [])
    assert world.passes("other")


def test_a_link_to_nothing_is_an_error(world: World) -> None:
    (world.policies / "web.yaml").unlink()
    (world.policies / "web.yaml").symlink_to(world.policies / "nothing")
    for _ in looks(world):
        assert world.look().errors
        holds_as_before(world)


def test_a_file_that_moves_to_another_source_while_they_are_read_is_not_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.endpoints / "web.yaml"
    (world.policies / "web.yaml").rename(before)
    world.look()
    holds_as_before(world)
    once_before(monkeypatch, "pods.yaml", lambda: before.rename(world.policies / "web.yaml"))
    assert not world.look().errors
    holds_as_before(world)


def test_a_document_that_moves_to_a_file_read_already_is_not_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move() -> None:
        world.write("policies/db.yaml", policy("db", "db", "web") + policy())
        world.write("policies/web.yaml", policy("more", "db", "web"))

    once_before(monkeypatch, "web.yaml", move)
    assert not world.look().errors
    holds_as_before(world)


def test_a_policy_without_the_denials_still_to_be_written_does_not_count(world: World) -> None:
    begun = policy("db", "db", "web")
    world.write("policies/db.yaml", begun + "  ingressDeny: [{fromEndpoints: [{matchLabels: {app: web}}]}]\n")
    world.look()
    assert not world.passes("web", "db")
    with (world.policies / "db.yaml").open("w") as writer:
        writer.write(begun)
        writer.flush()
        view = world.look()
        assert [error.reason for error in view.errors] == ["is being written"]
        assert not world.passes("web", "db")
    assert not world.look().errors
    assert world.passes("web", "db")


@pytest.mark.parametrize("nested", ["", "deep/"])
def test_a_link_to_a_folder_is_that_folder(world: World, tmp_path: Path, nested: str) -> None:
    """As Kubernetes mounts a key `team/x.yaml`."""
    target = tmp_path / "target"
    (target / nested).mkdir(parents=True)
    (world.policies / "web.yaml").rename(target / nested / "web.yaml")
    (world.policies / "team").symlink_to(target)
    (target / "again").symlink_to(target)
    for _ in looks(world):
        assert not world.look().errors
        holds_as_before(world)
    target.rename(tmp_path / "gone")
    for _ in looks(world):
        assert "a link to nothing" in world.look().errors[0].reason
        holds_as_before(world)


CONFIG = (
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cilium-config, namespace: kube-system}\n"
    "data: {enable-policy: always}\n"
)


@pytest.mark.parametrize(
    "bad", ["a: [", "", CONFIG.replace("always", "sometimes"), CONFIG.replace("data: {", "data: [")]
)
def test_a_bad_config_map_keeps_its_settings(world: World, bad: str) -> None:
    world.write("policies/config.yaml", CONFIG)
    assert not world.look().errors
    assert not world.passes("client", "other")
    world.write("policies/config.yaml", bad)
    for _ in looks(world):
        view = world.look()
        assert len(view.errors) == 1
        assert view.kept == ["ConfigMap kube-system/cilium-config"]
        assert not world.passes("client", "other")
        holds_as_before(world)
    (world.policies / "config.yaml").unlink()
    assert not world.look().errors
    assert world.passes("client", "other")


def test_nothing_is_said_to_be_kept_that_counts_by_the_settings_that_came_back(world: World) -> None:
    world.write("policies/config.yaml", CONFIG.replace("enable-policy: always", "enable-icmp-rules: 'false'"))
    world.look()
    world.write("policies/config.yaml", "a: [")
    assert world.look().kept
    (world.policies / "config.yaml").unlink()
    world.write("policies/web.yaml", policy().replace("}}]}]", "}}], icmps: [{fields: [{type: 8}]}]}]"))
    view = world.look()
    assert not view.errors
    assert not view.kept


def test_a_bad_config_map_without_last_version_closes_the_node(world: World) -> None:
    """What it would have said holds for everybody."""
    world.write("policies/config.yaml", CONFIG.replace("always", "sometimes"))
    assert world.look().world.closed
    assert not world.passes("client", "other")


@pytest.mark.parametrize("second", ["default", "never"])
def test_two_config_maps_of_one_name_close_the_node(world: World, second: str) -> None:
    world.write("policies/config.yaml", CONFIG)
    world.write("policies/more.yaml", CONFIG.replace("always", second))
    assert world.look().errors
    assert not world.passes("client", "other")
    assert not world.passes("other")


def test_what_could_not_be_kept_is_kept_the_next_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space", str(path))

    world.write("policies/web.yaml", policy(peer="other"))
    with monkeypatch.context() as full:
        full.setattr(kept, "write_atomic", fail)
        with pytest.raises(OSError, match="no space"):
            world.look()
    world.look()
    world.restart()
    world.write("policies/web.yaml", "a: [")
    world.look()
    assert world.passes("other")
    assert not world.passes("client")


def test_a_file_that_comes_while_others_are_read_costs_no_second_reading(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.look()
    once_before(monkeypatch, "db.yaml", lambda: world.write("policies/a.yaml", policy("a", "web", "other")))
    assert not world.look().errors
    assert not world.passes("other")
    assert not world.look().errors
    assert world.passes("other")


def test_a_new_file_that_is_just_written_is_not_there_yet(world: World) -> None:
    """A slow copy into the folder closes nobody."""
    with (world.policies / "new.yaml").open("w") as writer:
        writer.write(policy("new", "web", "other"))
        writer.flush()
        view = world.look()
        assert (view.errors, view.unfinished) == ([], {str(world.policies / "new.yaml")})
        holds_as_before(world)
    assert not world.look().unfinished
    assert world.passes("other")


@pytest.mark.parametrize("target", ["endpoints", "."])
def test_no_link_leads_into_another_source(world: World, target: str) -> None:
    """To it, or to where both lie: nothing is defined twice."""
    (world.policies / "more").symlink_to(world.policies.parent / target)
    for _ in looks(world):
        assert world.look().errors == []
        holds_as_before(world)
