# SPDX-License-Identifier: Apache-2.0
"""Laws of `idmesh apply`: what is handed in is a source like any other, and --wait means that every reader has it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from checks import OTHER, POLICY, WORLD, allowed, request
from node_run import Running

EXTRA = POLICY.replace("name: web", "name: extra").replace("app: client", "app: other")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Running]:
    """A node that knows the pods, and a policy that lets only the client in."""
    made = Running(tmp_path)
    made.write("policies/web.yaml", POLICY)
    made.write("endpoints/pods.yaml", WORLD)
    made.start()
    yield made
    made.end()


def handed(node: Running, *words: str) -> tuple[int, str, str]:
    return node.run("apply", str(node.folder / "mine"), *words)


def test_what_was_handed_in_is_in_force_when_wait_returns(node: Running) -> None:
    node.write("mine/extra.yaml", EXTRA)
    assert not allowed(node.client.check(request(OTHER)))
    for turn in range(4):
        code, out, err = handed(node, "--wait", "--json")
        assert code == 0, err
        assert json.loads(out)["waiting"] == []
        assert allowed(node.client.check(request(OTHER))), (out, node.status())
        code, _, err = handed(node, "--remove", "--wait")
        assert code == 0, err
        assert not allowed(node.client.check(request(OTHER))), turn


def test_it_outlives_the_node_and_its_own_file(node: Running) -> None:
    node.write("mine/extra.yaml", EXTRA)
    assert handed(node)[0] == 0
    shutil.rmtree(node.folder / "mine")
    assert node.stop() == 0
    node.start()
    assert allowed(node.client.check(request(OTHER)))
    sources = node.status()[1]["sources"]
    assert [(s["path"], s["objects"]) for s in sources if s["role"] == "applied"] == [(str(node.folder / "mine"), 1)]


def test_the_same_path_again_replaces_it_whole(node: Running) -> None:
    node.write("mine/extra.yaml", EXTRA)
    node.write("mine/more.yaml", EXTRA.replace("name: extra", "name: more"))
    assert handed(node)[0] == 0
    (node.folder / "mine/extra.yaml").unlink()
    node.write("mine/more.yaml", EXTRA.replace("name: extra", "name: more").replace("/public/", "/elsewhere/"))
    assert handed(node, "--wait")[0] == 0
    assert not allowed(node.client.check(request(OTHER)))
    assert node.status()[1]["counts"]["policies"] == 2


def test_a_bad_object_is_refused_by_the_users_own_line_and_keeps_its_last(node: Running) -> None:
    node.write("mine/extra.yaml", EXTRA)
    assert handed(node, "--wait")[0] == 0
    node.write("mine/extra.yaml", EXTRA.replace("fromEndpoints", "fromEndpoint"))
    node.write("mine/good.yaml", EXTRA.replace("name: extra", "name: good"))
    command = ["apply", "mine", "--wait"]
    code, _, err = node.run(*command, cwd=node.folder)
    assert code == 1
    assert err.startswith("mine/extra.yaml:"), err
    assert "CiliumNetworkPolicy default/extra" in err
    assert allowed(node.client.check(request(OTHER)))
    assert node.status()[1]["errors"][0]["file"] == str(node.folder / "mine/extra.yaml")
    assert node.status()[1]["counts"]["policies"] == 3


def test_an_object_of_another_source_is_a_conflict_and_changes_nothing(node: Running) -> None:
    node.write("mine/web.yaml", POLICY.replace("/public/", "/elsewhere/"))
    code, _, err = handed(node, "--wait")
    assert code == 1
    assert "is defined twice" in err
    assert str(node.folder / "policies/web.yaml") in err
    assert allowed(node.client.check(request()))


def test_what_would_close_the_node_is_not_handed_in(node: Running) -> None:
    node.write("mine/extra.yaml", "kind: [")
    assert handed(node)[0] == 1
    assert not node.status()[1]["closed"]
    assert allowed(node.client.check(request()))


def test_an_empty_or_missing_path_is_an_error_and_no_deletion(node: Running) -> None:
    node.write("mine/extra.yaml", EXTRA)
    assert handed(node, "--wait")[0] == 0
    (node.folder / "mine/extra.yaml").write_text("\n")
    assert handed(node)[0] == 2
    (node.folder / "mine/extra.yaml").unlink()
    assert handed(node)[0] == 2
    shutil.rmtree(node.folder / "mine")
    assert handed(node)[0] == 2
    assert allowed(node.client.check(request(OTHER)))


def test_removing_what_was_never_handed_in_is_an_error(node: Running) -> None:
    code, _, err = handed(node, "--remove")
    assert code == 2
    assert "was not handed in" in err


def test_without_a_node_it_exits_2(node: Running) -> None:
    node.write("mine/extra.yaml", EXTRA)
    assert node.stop() == 0
    code, _, err = handed(node)
    assert code == 2
    assert "no node is running" in err


def test_a_name_that_is_not_utf8_is_refused_with_that_reason(node: Running) -> None:
    node.write("mine/\udcff.yaml", EXTRA)
    code, _, err = handed(node)
    assert code == 2
    assert "\\udcff.yaml: its name is not UTF-8" in err
    code, _, err = node.run("apply", "--remove", "/a\udcff")
    assert code == 2
    assert "not UTF-8" in err


def test_a_reader_that_does_not_acknowledge_is_named_with_its_revision(node: Running) -> None:
    node.write("mine/extra.yaml", EXTRA)
    reader = node.status()[1]["readers"][0]
    os.kill(reader["pid"], signal.SIGSTOP)
    try:
        code, _, err = handed(node, "--wait", "--timeout", "0.5")
        assert code == 1
        assert f"reader {reader['pid']} (ext-authz" in err
        assert f"has revision {reader['revision']}, not {reader['revision'] + 1}" in err
    finally:
        os.kill(reader["pid"], signal.SIGCONT)
    assert handed(node, "--wait")[0] == 0
    assert allowed(node.client.check(request(OTHER)))


def test_what_was_kept_and_is_damaged_drops_nothing(node: Running) -> None:
    """Also not over a restart, when nothing but the disk is left."""
    node.write("mine/extra.yaml", EXTRA)
    assert handed(node, "--wait")[0] == 0
    assert node.stop() == 0
    index = next(node.state.applied.glob("*/source.json"))
    index.write_text("{")
    node.start()
    assert allowed(node.client.check(request(OTHER)))
    assert any("cannot be read back" in error["reason"] for error in node.status()[1]["errors"])
    assert handed(node, "--wait")[0] == 0
    assert node.status()[1]["error_count"] == 0


def test_nobody_but_the_owner_reaches_the_admin_socket_or_what_was_handed_in(node: Running) -> None:
    node.write("mine/extra.yaml", EXTRA)
    assert handed(node)[0] == 0
    found = node.state.admin.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(node.state.applied.stat().st_mode) == 0o700
    files = [path for path in node.state.applied.rglob("*") if path.is_file()]
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
