# SPDX-License-Identifier: Apache-2.0
"""Laws of the state directory, the watch, the status page and systemd's socket."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ext_authz import cli
from ext_authz.agent.admin import Admin, admin_of
from ext_authz.agent.notify import notify, watchdog_interval_s
from ext_authz.agent.status import read_status
from ext_authz.agent.watch import Watch, signature
from ext_authz.state import State, StateError, read_owned, write_json


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state")
    made.prepare()
    return made


# ---- the directory ----


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(StateError, match="others may write"):
        State(tmp_path / "state").prepare()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").symlink_to(tmp_path)
    with pytest.raises((StateError, FileExistsError)):
        State(tmp_path / "state").prepare()


def test_one_node_at_a_time(state: State) -> None:
    with state.owned():
        assert state.running() == os.getpid()
        with pytest.raises(StateError, match="another node"), state.owned():
            pass
    assert state.running() is None


def test_files_are_private_and_whole(state: State) -> None:
    write_json(state.status, {"a": 1})
    assert state.status.stat().st_mode & 0o777 == 0o600
    assert not [name for name in os.listdir(state.root) if name.startswith(".")]


def test_a_file_that_others_may_write_is_not_read(state: State) -> None:
    write_json(state.status, {})
    state.status.chmod(0o622)
    with pytest.raises(OSError, match="others than its owner"):
        read_owned(state.status)


def test_a_link_is_not_followed(state: State, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("x")
    state.snapshot.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        read_owned(state.snapshot)


# ---- the watch ----


def speaks(watch: Watch, seconds: float = 2.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if select.select([watch.fileno()], [], [], 0.05)[0] and watch.drain():
            return True
    return False


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "policies"
    made.mkdir()
    (made / "a.yaml").write_text("a")
    return made


def test_every_kind_of_change_is_told(folder: Path) -> None:
    watch = Watch([folder])
    (folder / "b.yaml").write_text("b")
    assert speaks(watch)
    (folder / ".new").write_text("c")
    (folder / ".new").rename(folder / "a.yaml")
    assert speaks(watch)
    (folder / "b.yaml").unlink()
    assert speaks(watch)


def test_new_folders_are_watched_too(folder: Path) -> None:
    watch = Watch([folder])
    (folder / "sub").mkdir()
    assert speaks(watch)
    (folder / "sub/c.yaml").write_text("c")
    assert speaks(watch)


def test_a_folder_named_like_a_file_is_watched_too(folder: Path) -> None:
    watch = Watch([folder])
    (folder / "sub.yaml").mkdir()
    assert speaks(watch)
    (folder / "sub.yaml/c.yaml").write_text("c")
    assert speaks(watch)


def test_a_source_named_like_a_file_that_is_another_folder_now_is_watched(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "own.yaml"
    link.symlink_to("one")
    watch = Watch([link])
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(link)
    assert speaks(watch)
    (tmp_path / "two/c.yaml").write_text("c")
    assert speaks(watch)


def test_plain_files_that_come_and_go_cost_no_walk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch([folder])
    monkeypatch.setattr(watch, "refresh", lambda: pytest.fail("walked"))
    (folder / "b.yaml").write_text("b")
    assert speaks(watch)
    (folder / "b.yaml").unlink()
    assert speaks(watch)


def test_a_source_that_comes_back_is_told(folder: Path) -> None:
    watch = Watch([folder])
    folder.rename(folder.with_name("gone"))
    assert speaks(watch)
    folder.with_name("gone").rename(folder)
    assert speaks(watch)
    (folder / "d.yaml").write_text("d")
    assert speaks(watch)


def test_the_swap_of_a_mounted_configmap_is_told(folder: Path) -> None:
    (folder / "..1").mkdir()
    (folder / "..data").symlink_to("..1")
    watch = Watch([folder])
    (folder / "..2").mkdir()
    (folder / "..new").symlink_to("..2")
    (folder / "..new").rename(folder / "..data")
    assert speaks(watch)


def test_the_signature_changes_with_content_and_presence(folder: Path) -> None:
    seen = {signature([folder])}
    (folder / "b.yaml").write_text("b")
    seen.add(signature([folder]))
    (folder / "b.yaml").write_text("longer")
    seen.add(signature([folder]))
    (folder / "b.yaml").unlink()
    assert signature([folder]) in seen
    folder.rename(folder.with_name("gone"))
    seen.add(signature([folder]))
    assert len(seen) == 4


# ---- status ----


def page(state: State, **fields: Any) -> None:
    base = {"revision": 5, "digest": "d", "published": time.time() - 60, "error_count": 0, "workers": []}
    write_json(state.status, base | fields)


def reader(state: State, **fields: Any) -> None:
    base = {"door": "module", "pid": os.getpid(), "revision": 5, "digest": "d", "rejected": 0, "error": ""}
    write_json(state.readers / f"{os.getpid()}.json", base | fields)


def test_readers_that_have_the_revision_are_well(state: State) -> None:
    with state.owned():
        page(state)
        reader(state)
        assert read_status(state).healthy


@pytest.mark.parametrize("fields", [{"revision": 4}, {"digest": "other"}])
def test_a_stale_reader_is_a_problem(state: State, fields: dict[str, Any]) -> None:
    with state.owned():
        page(state)
        reader(state, **fields)
        status = read_status(state)
        assert not status.healthy
        assert str(os.getpid()) in status.problems[0]


def test_a_reader_just_behind_is_given_time(state: State) -> None:
    with state.owned():
        page(state, published=time.time())
        reader(state, revision=4)
        assert read_status(state).healthy


def test_a_worker_that_never_reported_is_a_problem(state: State) -> None:
    with state.owned():
        page(state, workers=[12345678])
        assert not read_status(state).healthy


@pytest.mark.parametrize("fields", [{"revision": 0}, {"envoy_trouble": "Envoy does not run"}])
def test_a_node_that_serves_nothing_is_not_well(state: State, fields: dict[str, Any]) -> None:
    with state.owned():
        page(state, **fields)
        assert not read_status(state).healthy


@pytest.mark.parametrize(("ago_s", "is_well"), [(60, False), (2, True)])
def test_an_envoy_that_nobody_reads_for_is_a_problem_once_it_had_time(
    state: State, ago_s: float, is_well: bool
) -> None:
    """Its configuration names another state directory, or asks no door: all is denied, or nothing judged."""
    with state.owned():
        page(state, envoy=os.getpid(), published=time.time() - ago_s)
        assert read_status(state).healthy is is_well
        reader(state)
        assert read_status(state).healthy


def test_reports_of_ended_processes_do_not_count(state: State) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with state.owned():
        page(state)
        write_json(state.readers / "1.json", {"door": "module", "pid": ended.pid, "revision": 1})
        assert read_status(state).healthy


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b'{"pid": "x"}', b'{"revision": 3}', b"\xff"])
def test_a_report_that_makes_no_sense_breaks_nothing(state: State, text: bytes) -> None:
    with state.owned():
        page(state)
        (state.readers / "9.json").write_bytes(text)
        assert read_status(state).readers == []


# ---- systemd, Envoy's admin ----


def test_notify_speaks_to_systemd_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        assert notify("READY=1", "STATUS=x")
        assert systemd.recv(100) == b"READY=1\nSTATUS=x"


def test_the_watchdog_is_fed_twice_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    assert watchdog_interval_s() == 2.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval_s() is None


@pytest.mark.parametrize(
    ("config", "admin"),
    [
        ({"admin": {"address": {"pipe": {"path": "/x"}}}}, Admin(path="/x")),
        (
            {"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9}}}},
            Admin(host="127.0.0.1", port=9),
        ),
        ({"admin": {"address": {"socketAddress": {"address": "0.0.0.0", "portValue": 9}}}}, Admin("", "127.0.0.1", 9)),
    ],
)
def test_the_admin_interface_is_found_however_it_is_written(config: Any, admin: Admin) -> None:
    assert admin_of(config) == admin


@pytest.mark.parametrize("config", [None, {}, [], "x", {"admin": None}, {"admin": {"address": {}}}])
def test_without_an_admin_interface_there_is_none(config: Any) -> None:
    assert not admin_of(config)


def test_who_may_not_ask_hears_so_and_not_that_no_node_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: object, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("ext_authz.state.os.open", refuse)
    assert cli.main(["status", "--state", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "Permission denied" in said.err
    assert "no node" not in said.out + said.err


def test_requests_that_nobody_waited_for_are_a_standing_warning(tmp_path):
    state = State(tmp_path / "state")
    state.prepare()
    write_json(state.status, {"revision": 1, "standing": [{"reason": "first"}]})
    page = {"pid": os.getpid(), "door": "ext-authz", "revision": 1}
    for observed, wanted in ((0, 1), (3, 2)):
        write_json(state.readers / f"{os.getpid()}.json", {**page, "ext_proc": {"observed": observed}})
        standing = read_status(state).page["standing"]
        assert len(standing) == wanted
    assert "of 3 requests" in standing[1]["reason"]
