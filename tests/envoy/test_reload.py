# SPDX-License-Identifier: Apache-2.0
"""New policies under load: no request fails or is misjudged, and what is no good snapshot changes nothing."""

from __future__ import annotations

import os
import struct
import threading
import time
import zlib
from pathlib import Path

from envoy_backend import Backend
from envoy_harness import CLIENT, WORLD, Client, Envoy, Node, ask, policy, running, setup_for, snapshot, wait_until

from ext_authz.engine import layout
from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door

SECONDS = float(os.environ.get("IDMESH_RELOAD_SECONDS", "3"))
OPEN = policy("[{path: /always.*}, {path: /sometimes.*}]")
CLOSED = policy("[{path: /always.*}]")


class Load(threading.Thread):
    """Sends one request after another; each answer stands with the time it was asked and answered."""

    def __init__(self, envoy: Envoy, path: str) -> None:
        super().__init__(daemon=True)
        self._client = Client(CLIENT, envoy.listen)
        self._path = path
        self.answers: list[tuple[float, float, int]] = []
        self.failure: BaseException | None = None
        self.stopping = False

    def run(self) -> None:
        try:
            while not self.stopping:
                asked = time.monotonic()
                status = self._client.send(self._path).status
                self.answers.append((asked, time.monotonic(), status))
        except BaseException as error:
            self.failure = error
        finally:
            self._client.close()

    def finish(self) -> None:
        self.stopping = True
        self.join(10)


def test_policy_changes_under_load_without_a_failed_or_misjudged_request(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(OPEN)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        node.wait_for(1)
        loads = {path: Load(started, path) for path in ("/always", "/sometimes", "/never")}
        for load in loads.values():
            load.start()
        history = _alternate(node, started)
        for load in loads.values():
            load.finish()
            assert load.failure is None
            assert len(load.answers) > 50
        assert started.stat("idmesh.snapshot_rejected") == 0
    assert {status for *_, status in loads["/always"].answers} == {200}
    assert {status for *_, status in loads["/never"].answers} == {403}
    for asked, answered, status in loads["/sometimes"].answers:
        assert status in _possible(history, asked, answered)
    assert {status for *_, status in loads["/sometimes"].answers} == {200, 403}


def _alternate(node: Node, envoy: Envoy) -> list[tuple[float, float, int]]:
    """Publish open and closed by turns; when each may have come into force, when it surely had, and its answer."""
    history = [(0.0, 0.0, 200)]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        closed = len(history) % 2 == 1
        before = time.monotonic()
        revision = node.publish(CLOSED if closed else OPEN)
        wait_until(lambda wanted=revision: envoy.stat("idmesh.revision") == wanted, "the revision")
        history.append((before, time.monotonic(), 403 if closed else 200))
        time.sleep(0.02)
    assert len(history) > 5
    return history


def _possible(history: list[tuple[float, float, int]], asked: float, answered: float) -> set[int]:
    """Answers of every policy that may have been in force between asking and answering."""
    found = set()
    for at, (earliest, _, status) in enumerate(history):
        ends = history[at + 1][1] if at + 1 < len(history) else float("inf")
        if earliest <= answered and asked <= ends:
            found.add(status)
    return found


def test_a_rename_is_in_force_within_100_ms(node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    node.publish(OPEN)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        node.wait_for(1)
        took = []
        for turn in range(10):
            data = snapshot(CLOSED if turn % 2 == 0 else OPEN, revision=turn + 2)
            before = time.monotonic()
            node.publish_bytes(data)
            wait_until(lambda wanted=turn + 2: node.report().get("revision") == wanted, "the report")
            took.append(time.monotonic() - before)
        assert sorted(took)[5] < 0.1, took
        assert started.stat("idmesh.snapshot_loaded") == 11


def _other_version(good: bytes) -> bytes:
    """Whole and with a right checksum, but of a format to come."""
    head = layout.record("idm_header")
    fields = head.unpack_from(good)
    size = head.size + fields["table_count"] * layout.record("idm_table_ref").size
    other = bytearray(good)
    struct.pack_into("<I", other, len(layout.MAGIC), fields["format"] + 1)
    at = good.index(struct.pack("<I", fields["crc32"]), 0, head.size)
    struct.pack_into("<I", other, at, 0)
    struct.pack_into("<I", other, at, zlib.crc32(other[:size]))
    return bytes(other)


def _damaged(good: bytes) -> dict[str, bytes]:
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    return {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "cut by one": good[:-1],
        "longer": good + b"x",
        "corrupt": bytes(flipped),
        "other version": _other_version(good),
        "something else": b"apiVersion: v1\n" * 1000,
    }


def test_what_is_no_good_snapshot_is_refused_and_the_last_stays(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    revision = node.publish(OPEN)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        node.wait_for(revision)
        for count, (what, data) in enumerate(_damaged(snapshot(CLOSED, revision=9)).items(), 1):
            node.publish_bytes(data)
            wait_until(lambda wanted=count: started.stat("idmesh.snapshot_rejected") == wanted, what)
            assert node.report()["revision"] == revision, what
            assert node.report()["error"], what
            assert ("this engine reads format" in str(node.report()["error"])) == (what == "other version")
            assert ask(CLIENT, started, "/sometimes").status == 200, what
        assert "snapshot refused, revision 1 stays in force" in started.log.read_text()
        node.revision = 9
        node.wait_for(node.publish(CLOSED))
        assert node.report()["error"] is None
        assert ask(CLIENT, started, "/sometimes").status == 403


def test_a_file_that_others_may_write_is_refused(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(OPEN)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        node.wait_for(1)
        part = node.state / "part"
        part.write_bytes(snapshot(CLOSED, revision=2))
        part.chmod(0o666)
        part.rename(node.state / "snapshot")
        wait_until(lambda: started.stat("idmesh.snapshot_rejected") == 1, "the refusal")
        assert "may write it" in str(node.report()["error"])
        (node.state / "snapshot").unlink()
        (tmp_path / "elsewhere").write_bytes(snapshot(CLOSED, revision=3))
        (node.state / "link").symlink_to(tmp_path / "elsewhere")
        (node.state / "link").rename(node.state / "snapshot")
        wait_until(lambda: started.stat("idmesh.snapshot_rejected") == 2, "the refusal of the link")
        assert ask(CLIENT, started, "/sometimes").status == 200


def test_a_vanished_snapshot_or_directory_changes_nothing(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(OPEN)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        node.wait_for(1)
        (node.state / "snapshot").unlink()
        wait_until(lambda: "is gone" in started.log.read_text(), "the warning")
        assert ask(CLIENT, started, "/sometimes").status == 200
        node.state.rename(tmp_path / "moved")
        assert ask(CLIENT, started, "/sometimes").status == 200
        node.state.mkdir()
        node.wait_for(node.publish(CLOSED))
        assert ask(CLIENT, started, "/sometimes").status == 403


def test_an_address_that_moves_to_another_pod_is_judged_as_that_one(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    """Identity from an address is looked up per request: a kept connection has no memory of who it was."""
    node.publish(OPEN)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        client = Client(CLIENT, started.listen)
        assert client.send("/always").status == 200
        moved = WORLD.replace(f"ip: {CLIENT}", "ip: 127.1.0.99")
        node.publish_bytes(snapshot(OPEN, revision=2, world=moved))
        node.wait_for(2)
        assert client.send("/always").status == 403
        client.close()


def test_reader_reports_and_takes_its_report_away(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(OPEN)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        node.wait_for(1)
        report = node.report()
        assert report["pid"] == started.process.pid
        assert report["door"] == "module"
        assert report["workers"] == 2
        assert len(str(report["digest"])) == 64
        ask(CLIENT, started, "/always")
        wait_until(lambda: node.report().get("oldest_decision") == 1, "the worker's revision")
    assert node.report() == {}
