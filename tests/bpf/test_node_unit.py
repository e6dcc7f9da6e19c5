# SPDX-License-Identifier: Apache-2.0
"""
The node as its systemd unit runs it: with the unit's capabilities and no more, and with mounts of its own.

What systemd itself does (its filter of system calls among it) is not tried here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.commands.systemd import render
from ext_authz.privileges import OF_AGENT, OF_DATA_PATH
from ext_authz.process import command_line
from tests.bpf.net import Network, eventually, serve_greeting
from tests.bpf.node_run import NodeRun
from tests.bpf.test_node_run import POLICY, WEB, prepared, reaches
from tests.bpf.test_node_steering import HTTP, fetch, served

DATAPATH = ("NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "BPF")
# A process of another user, as those of containers are.
SLEEPER = ["setpriv", "--reuid=65534", "--clear-groups", "sleep", "600"]


def is_sleeping(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"


def held(pid: int) -> int:
    """Its capabilities in force."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)


def children(unit: NodeRun) -> list[int]:
    """Of every thread of the agent."""
    assert unit.process is not None
    tasks = Path(f"/proc/{unit.process.pid}/task").glob("*/children")
    return [int(one) for task in tasks for one in task.read_text().split()]


def allowed() -> list[str]:
    """The unit's capabilities as setpriv has them."""
    lines = [line for line in render("idmesh.service").splitlines() if line.startswith("CapabilityBoundingSet=")]
    return [word.removeprefix("CAP_").lower() for line in lines for word in line.partition("=")[2].split()]


class UnitRun(NodeRun):
    """A node in the unit's place. lacks: a capability less."""

    lacks = ""

    def start(self) -> None:
        self.launch()
        eventually(self._answers, 60, "the node does not start")

    def _command(self, *words: str) -> list[str]:
        command = super()._command(*words)
        if words[0] != "run" or "--cleanup" in words:
            return command
        given = ",".join(f"+{one}" for one in allowed() if one != self.lacks)
        at = command.index(sys.executable)
        confined = ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{given}"]
        return ["unshare", "--mount", "--propagation", "slave", *command[:at], *confined, *command[at:]]


@pytest.fixture
def unit(net: Network, folder: Path, cgroup: Path) -> Iterator[UnitRun]:
    """The host has mounted the file system of pins, as the mount unit does."""
    for plain in prepared(net, folder, cgroup):
        made = UnitRun(plain.net, plain.folder, plain.base)
        made.state.prepare()
        pins = made.state.datapath_pins
        pins.mkdir(mode=0o700)
        options = next(line for line in render("run-idmesh-datapath-bpf.mount").splitlines() if "Options=" in line)
        subprocess.run(["mount", "-t", "bpf", "-o", options.partition("=")[2], "idmesh", pins], check=True)
        try:
            yield made
        finally:
            made.end()


def test_the_units_capabilities_are_those_that_are_tried_here() -> None:
    assert [one.upper() for one in allowed()][-4:] == list(DATAPATH)


@pytest.mark.needs_envoy
def test_its_capabilities_and_mounts_are_enough(unit: UnitRun) -> None:
    unit.words = ["--datapath", "on", "--door", "module", "--concurrency", "1"]
    unit.write("policies/web.yaml", HTTP)
    server = served(unit.net.ends["web"], WEB[0])
    sleeper = subprocess.Popen(unit.net.ends["other"].command(SLEEPER))
    try:
        unit.start()
        for name in ("client", "web"):
            unit.attach(name, app=name)
        eventually(lambda: is_sleeping(sleeper.pid))
        code, _, error = unit.run("endpoint", "attach", "other", "--pid", str(sleeper.pid), "--labels", "app=other")
        assert code == 0, (error, unit.log())
        client = unit.net.ends["client"]
        eventually(lambda: fetch(client, "http://10.0.0.3/public/a")[0] == "200", 20)
        assert fetch(client, "http://10.0.0.3/secret") == ("403", "Access denied\n")
        assert unit.json("datapath", "status")["warnings"] == []
        assert not held(unit.json("status")["envoy"]) & OF_AGENT
    finally:
        for process in (server, sleeper):
            process.kill()
            process.communicate()


@pytest.mark.needs_envoy
def test_whoever_reads_what_others_wrote_has_nothing_of_it(unit: UnitRun) -> None:
    """Also an Envoy that nothing is steered to; the agent and its data path alone have what the unit gives."""
    unit.words = ["--door", "ext-authz", "--listen", "127.0.0.1:18080", "--upstream", "127.0.0.1:9", "--flows", "-"]
    unit.write("policies/web.yaml", POLICY % "client")
    unit.start()
    unit.attach("web", app="web")
    page = unit.json("status")
    assert not held(page["envoy"]) & OF_AGENT
    others = {pid: command_line(pid) for pid in children(unit)}
    modules = {words[2].decode(): pid for pid, words in others.items() if words[1:2] == [b"-m"]}
    assert held(modules.pop("ext_authz.agent.datapath_process")) & OF_DATA_PATH == OF_DATA_PATH
    assert sorted(modules) == ["ext_authz.agent.builder", "ext_authz.flow.observer", "ext_authz.service.worker"]
    eventually(lambda: not any(held(pid) & OF_DATA_PATH for pid in modules.values()), 20, str(modules))


def test_what_it_enforces_outlives_its_mounts(unit: UnitRun) -> None:
    unit.words = ["--datapath", "on"]
    unit.write("policies/web.yaml", POLICY % "client")
    unit.start()
    for name in unit.net.ends:
        unit.attach(name, app=name)
    unit.kill()  # the last process in its mount namespace
    with serve_greeting(unit.net.ends["web"], *WEB):
        assert reaches(unit, "client")
        assert not reaches(unit, "other")
    assert (unit.state.datapath_pins / "live").is_dir()


def test_a_node_that_must_mount_for_itself_says_that_it_ends_with_its_mounts(unit: UnitRun) -> None:
    subprocess.run(["umount", unit.state.datapath_pins], check=True)
    unit.words = ["--datapath", "on"]
    unit.write("policies/web.yaml", POLICY % "client")
    unit.start()
    page = unit.state.datapath / "page.json"
    eventually(lambda: "mounted for this process alone" in page.read_text(), 20)
    unit.kill()


@pytest.mark.parametrize("lacks", ["net_admin", "sys_admin"])
def test_without_one_of_them_the_node_says_which(unit: UnitRun, lacks: str) -> None:
    unit.lacks = lacks
    code, _, error = unit.run("run", "--policies", str(unit.folder / "policies"), "--datapath", "on")
    assert (code, f"CAP_{lacks.upper()}" in error) == (2, True), error


def test_without_ptrace_a_strangers_process_does_not_lead_to_its_namespace(unit: UnitRun) -> None:
    unit.lacks = "sys_ptrace"
    unit.words = ["--datapath", "on"]
    unit.start()
    with subprocess.Popen(unit.net.ends["other"].command(SLEEPER)) as sleeper:
        try:
            eventually(lambda: is_sleeping(sleeper.pid))
            words = ["endpoint", "attach", "other", "--pid", str(sleeper.pid), "--labels", "app=other"]
            code, _, error = unit.run(*words)
            assert (code, "Permission denied" in error) == (1, True), error
        finally:
            sleeper.kill()
