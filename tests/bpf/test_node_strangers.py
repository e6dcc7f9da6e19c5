# SPDX-License-Identifier: Apache-2.0
"""One data path a host: what a dead node with another state directory left is found, with how to be rid of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.agent.cgroups import BASE_VARIABLE
from tests.bpf.net import Network
from tests.bpf.node_run import NodeRun
from tests.bpf.test_node_run import prepared


@pytest.fixture
def dead(net: Network, folder: Path, cgroup: Path) -> Iterator[NodeRun]:
    """A node that was killed: its programs judge on."""
    for node in prepared(net, folder, cgroup):
        node.words = ["--datapath", "on"]
        node.start()
        node.attach("web", app="web")
        node.kill()
        yield node


@pytest.fixture
def other(dead: NodeRun) -> Iterator[NodeRun]:
    """A node of the same host with another state directory; not started."""
    made = NodeRun(dead.net, dead.folder / "other", dead.base)
    made.folder.mkdir()
    made.write("policies/web.yaml", (dead.folder / "policies/web.yaml").read_text())
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def test_a_node_does_not_start_beside_the_programs_of_a_dead_one(dead: NodeRun, other: NodeRun) -> None:
    veth = dead.net.ends["web"].veth
    code, _, error = other.run("run", "--policies", str(other.folder / "policies"), "--datapath", "on")
    assert code == 2
    assert f"choose_listener (network namespace), from_workload ({veth})" in error, error
    assert f"idmesh run --cleanup --state {dead.state.root}" in error
    assert not other.state.has_datapath


def test_a_node_that_need_not_judge_says_what_it_found_and_attaches_nothing(dead: NodeRun, other: NodeRun) -> None:
    other.start()
    assert f"idmesh run --cleanup --state {dead.state.root}" in other.log()
    where = ["--netns", dead.net.ends["client"].space.path, "--labels", "app=client"]
    code, _, error = other.run("endpoint", "attach", "client", *where)
    assert (code, str(dead.state.root) in error) == (1, True), error
    assert f"idmesh run --cleanup --state {dead.state.root}" in other.run("doctor", "--json")[1]
    assert dead.run("run", "--cleanup")[0] == 0
    assert other.run("endpoint", "attach", "client", *where)[0] == 0
    other.end()


def test_a_clean_up_with_the_wrong_state_directory_names_the_right_one(dead: NodeRun, other: NodeRun) -> None:
    code, _, error = other.run("run", "--cleanup")
    assert code == 1
    assert f"{other.state.root}: nothing of a data path was there" in error
    assert f"idmesh run --cleanup --state {dead.state.root}" in error
    code, _, error = dead.run("run", "--cleanup")
    assert (code, "another data path" in error) == (0, False), error
    for node in (dead, other):
        code, _, error = node.run("run", "--cleanup")
        assert (code, error.count("nothing of a data path was there"), error.count("\n")) == (0, 1, 1), error


def test_programs_whose_pins_nobody_sees_are_found_by_their_hooks(dead: NodeRun, other: NodeRun) -> None:
    """As behind a mount namespace of their own: who looks sees programs, and no file system with their pins."""
    hidden = ["unshare", "--mount", "--propagation", "private", "sh", "-c", 'umount "$0" && exec "$@"']
    words = other.command("run", "--cleanup")
    done = subprocess.run(
        [*hidden, str(dead.state.datapath_pins), *words],
        env=os.environ | {BASE_VARIABLE: str(other.base)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "choose_listener (network namespace)" in done.stderr
    assert "are in no file system that is mounted here" in done.stderr
