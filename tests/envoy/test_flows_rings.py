# SPDX-License-Identifier: Apache-2.0
"""The module's rings: nobody who reads them, or does not, changes a decision, and what is lost is counted."""

from __future__ import annotations

import json
import random
import subprocess
import threading
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_flows import listening
from envoy_harness import (
    CLIENT,
    MODULE,
    OTHER,
    Client,
    Envoy,
    Node,
    ask,
    parse_target,
    policy,
    refused_config,
    running,
    setup_for,
    wait_until,
)
from ext_authz.engine._engine import lib

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door

SMALL = lib.IDM_RING_MIN
TURNS = 300


def _statuses(envoy: Envoy, source: str, count: int) -> set[int]:
    client = Client(source, envoy.listen)
    try:
        return {client.send("/").status for _ in range(count)}
    finally:
        client.close()


def _flows(node: Node) -> dict[str, int]:
    flows = node.report()["flows"]
    assert isinstance(flows, dict)
    return flows


def test_what_nobody_reads_is_lost_and_counted(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(policy("[{path: /}]"))
    setup = setup_for(Door.MODULE, backend.address, state=node.state, flow_ring_bytes=SMALL)
    with running(setup, tmp_path, envoy, concurrency=1) as started:
        assert _statuses(started, CLIENT, TURNS) == {200}
        assert _statuses(started, OTHER, 10) == {403}
        wait_until(lambda: sum(_flows(node).values()) == 2 * TURNS + 10, "every record written or lost")
        flows = _flows(node)
        assert 0 < flows["lost"] < 2 * TURNS
        wait_until(lambda: started.stat("idmesh.flows_written") == flows["written"], "the counter")
        assert started.stat("idmesh.flows_lost") == flows["lost"]
        with listening(node.state) as rings:
            # Whoever comes late gets what the ring still holds; the rest goes on.
            rings.wait(lambda all: len(all) == flows["written"], "what was kept")
            assert ask(CLIENT, started, "/").status == 200
            rings.wait(lambda all: len(all) == flows["written"] + 2, "the new ones")


def test_rings_are_handed_over_again_to_an_observer_that_comes_back(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(policy("[{path: /.*}]"))
    setup = setup_for(Door.MODULE, backend.address, state=node.state)
    with running(setup, tmp_path, envoy, concurrency=2) as started:
        for turn in range(2):
            with listening(node.state) as rings:
                rings.wait_for_rings(3)  # two workers and the main thread
                assert ask(CLIENT, started, f"/{turn}").status == 200
                found = rings.wait(lambda all: len(all) >= 2, "the records")
                assert [record.path for record in found] == [f"/{turn}".encode(), b""]
                assert len({hello[16:24] for hello in rings.hellos}) == 3
            assert ask(CLIENT, started, "/").status == 200
            wait_until(lambda: (node.state / "flows.sock").exists() is False, "the socket to be gone")
            with listening(node.state) as rings:
                rings.wait(lambda all: len(all) >= 2, "what came while nobody was there")


def test_a_hostile_reader_changes_no_decision_and_hurts_nobody(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(policy("[{path: /}]"))
    setup = setup_for(Door.MODULE, backend.address, state=node.state, flow_ring_bytes=SMALL)
    done = threading.Event()
    with running(setup, tmp_path, envoy, concurrency=1) as started, listening(node.state) as rings:
        rings.wait_for_rings(2)
        memories = [rings.memory(index) for index in range(2)]
        random_bytes = random.Random(7)

        def scribble() -> None:
            while not done.is_set():
                memory = random_bytes.choice(memories)
                size = random_bytes.choice((8, 64, 192, 4096, len(memory)))
                at = random_bytes.choice((0, 64, 128, random_bytes.randrange(len(memory) - size + 1)))
                memory[at : at + min(size, len(memory) - at)] = random_bytes.randbytes(min(size, len(memory) - at))

        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            for _ in range(5):
                assert _statuses(started, CLIENT, TURNS) == {200}
                assert _statuses(started, OTHER, TURNS) == {403}
        finally:
            done.set()
            thread.join()
        # Its own counts stay its own, and it writes again once the reader reads.
        wait_until(lambda: sum(_flows(node).values()) == 5 * 3 * TURNS, "every record written or lost")
        assert started.process.poll() is None
    assert len(backend.requests) == 5 * TURNS


def test_the_readers_page_says_since_when_a_revision_is_in_force(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    setup = setup_for(Door.MODULE, backend.address, state=node.state)
    with running(setup, tmp_path, envoy):
        wait_until(lambda: "in_force_since" in node.report(), "a report")
        assert node.report()["in_force_since"] is None
        node.wait_for(node.publish(policy("[{path: /}]")))
        since = node.report()["in_force_since"]
        published = (node.state / "snapshot").stat().st_mtime
        assert isinstance(since, float)
        assert published - 1 < since < published + 60
        node.wait_for(node.publish(policy("[{path: /x}]")))
        assert node.report()["in_force_since"] != since
        assert node.report()["flows"] == {"written": 0, "lost": 0}


def test_no_ring_is_made_where_none_is_wanted(node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    node.publish(policy("[{path: /}]"))
    setup = setup_for(Door.MODULE, backend.address, state=node.state, flow_ring_bytes=0)
    with listening(node.state) as rings, running(setup, tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/").status == 200
        assert ask(OTHER, started, "/").status == 403
        wait_until(lambda: node.report().get("oldest_decision") == 1, "the timer")
        assert node.report()["flows"] is None
        assert rings.accept() == 0


@pytest.mark.parametrize("size", [1, 4096, SMALL + 1, SMALL // 2, lib.IDM_RING_MAX * 2, 3 * SMALL])
def test_sizes_that_no_ring_can_have_are_refused(size: int, node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    config = json.loads(render(setup_for(Door.MODULE, parse_target("127.0.0.1:9"), state=node.state)))
    config["bootstrapExtensions"][0]["typedConfig"]["extensionConfig"]["value"]["flow_ring_bytes"] = size
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(config))
    assert "flow_ring_bytes: must be 0 (no flow records) or a power of two" in refused_config(path, tmp_path, envoy)


def test_validating_a_configuration_offers_no_ring(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    path = tmp_path / "envoy.json"
    path.write_text(render(setup_for(Door.MODULE, backend.address, state=node.state)))
    with listening(node.state) as rings:
        done = subprocess.run(
            [str(envoy.path), "-c", str(path), "--mode", "validate"],
            env=envoy.environment(MODULE),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert rings.accept() == 0
