# SPDX-License-Identifier: Apache-2.0
"""When the agent starts the data path's process, and what it says while it does not run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from ext_authz.agent.attachments import Attachment, AttachmentStore
from ext_authz.agent.datapath import MODULE, Datapath, DatapathError, Mode
from ext_authz.agent.datapath_sizes import SizeError, parse_size
from ext_authz.agent.status import Reader, read_status
from ext_authz.agent.waiting import readers_behind
from ext_authz.state import State, write_json

ONE = Attachment("default", "web", ("10.0.0.3",), 1, {"app": "web"}, ifindex=7)


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state")
    made.prepare()
    return made


def test_nothing_is_started_before_there_is_something_to_enforce(state: State) -> None:
    assert not Datapath(state, Mode.AUTO).wanted
    assert Datapath(state, Mode.ON).wanted
    assert Datapath(state, Mode.AUTO, proxy_port=15001).wanted
    AttachmentStore(state.attached).put(ONE)
    assert Datapath(state, Mode.AUTO).wanted
    assert not Datapath(state, Mode.OFF).wanted
    assert not Datapath(state, Mode.AUTO, "not root").wanted


def test_what_an_earlier_node_left_must_follow_or_be_told_of(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    state.datapath_pins.mkdir()
    # The folder of an earlier boot: nothing stands in the kernel, and nothing is changed for it.
    assert not Datapath(state, Mode.AUTO).wanted
    assert Datapath(state, Mode.OFF).trouble == ""
    monkeypatch.setattr("os.path.ismount", lambda path: path == state.datapath_pins)
    assert not Datapath(state, Mode.AUTO).wanted  # mounted before us, by a service manager
    (state.datapath_pins / "sets").mkdir()
    assert Datapath(state, Mode.AUTO).wanted
    assert "--datapath off" in Datapath(state, Mode.OFF).trouble
    assert "not root" in Datapath(state, Mode.AUTO, "not root").trouble


def test_many_endpoints_are_not_read_to_know_that_there_is_one(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked all the time, on the event loop."""
    store = AttachmentStore(state.attached)
    assert not store.any()
    store.put(ONE)
    (state.attached / ".staged.json").touch()
    monkeypatch.setattr(AttachmentStore, "files", lambda _: pytest.fail("files were read"))
    assert Datapath(state, Mode.AUTO).page()["active"]
    store.remove(ONE.key)
    assert not store.any()


def test_without_a_data_path_attaching_says_why(state: State) -> None:
    for datapath, said in (
        (Datapath(state, Mode.AUTO, "the kernel has no BTF"), "the kernel has no BTF"),
        (Datapath(state, Mode.OFF), "--datapath off"),
    ):
        with pytest.raises(DatapathError, match=said):
            asyncio.run(datapath.attach(ONE))


def test_a_node_that_must_have_it_does_not_start_without(state: State) -> None:
    with pytest.raises(DatapathError, match="not root"):
        asyncio.run(Datapath(state, Mode.AUTO, "not root", proxy_port=15001).start())
    asyncio.run(Datapath(state, Mode.AUTO, "not root").start())


@pytest.mark.parametrize(("deaths", "starts"), [(2, True), (9, False)])
def test_a_process_that_is_killed_while_it_loads_is_started_again(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, starts: bool
) -> None:
    """Somebody's SIGKILL is no answer about this host; but who always dies shall not be started for ever."""
    tally = tmp_path / "tally"
    (tmp_path / "dies.py").write_text(
        f"import os, sys\nwith open({str(tally)!r}, 'a') as out: out.write('.')\n"
        f"if os.path.getsize({str(tally)!r}) <= {deaths}: os.kill(os.getpid(), 9)\n"
        "print('{\"pid\": 1}', flush=True)\nsys.stdin.read()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("ext_authz.agent.datapath.MODULE", "dies")

    async def begin() -> None:
        datapath = Datapath(state, Mode.ON)
        await datapath.start()
        await datapath.stop()

    if starts:
        asyncio.run(begin())
    else:
        with pytest.raises(DatapathError, match=r"it ended \(-9\)"):
            asyncio.run(begin())
    assert tally.stat().st_size == min(deaths + 1, 5)


@pytest.mark.needs_loader
def test_a_process_whose_agent_is_gone_already_touches_nothing(state: State) -> None:
    """Killed while its child began, the agent leaves one that would stand in the next agent's way."""
    before = sorted(state.root.rglob("*"))
    words = [sys.executable, "-m", MODULE, "--state", str(state.root), "--agent", str(2**22 - 1)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, b"")
    assert sorted(state.root.rglob("*")) == before


def test_who_waits_for_every_reader_waits_for_a_kernel_whose_process_is_dead(state: State) -> None:
    write_json(state.status, {"revision": 5, "datapath": {"active": True, "pid": None}})
    write_json(state.readers / "datapath.json", {"pid": 2**22 - 1, "door": "bpf", "revision": 3})
    (behind,) = readers_behind(state, 5)
    assert isinstance(behind, Reader)
    assert (behind.door, behind.revision) == ("bpf", 3)
    write_json(state.status, {"revision": 5, "datapath": {"active": False}})
    assert readers_behind(state, 5) == []


def test_its_warnings_stand_among_the_nodes(state: State) -> None:
    write_json(state.status, {"revision": 5, "datapath": {"active": True}, "standing": [{"reason": "a"}]})
    maps = [{"name": "spans", "rows": 3, "limit": 4, "bytes": 1}]
    write_json(state.datapath / "page.json", {"revision": 4, "maps": maps, "warnings": ["map spans is nearly full"]})
    page = read_status(state).page
    assert [warning["reason"] for warning in page["standing"]] == ["a", "data path: map spans is nearly full"]
    assert page["pressure"]["maps"] == {"spans": {"used": 3, "limit": 4}}


@pytest.mark.parametrize("text", ["", "spans", "spans=", "spans=0", "spans=-1", "nothing=5", "spans=99999999999"])
def test_sizes_are_of_maps_there_are(text: str) -> None:
    with pytest.raises(SizeError):
        parse_size(text)
    assert parse_size("spans=5") == ("spans", 5)
