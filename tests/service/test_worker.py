# SPDX-License-Identifier: Apache-2.0
"""Laws of one worker process, over real gRPC."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from checks import OTHER, POLICY, allowed, facts, request, snapshot
from service_run import HEALTH, Client, environment, page, publish, wait_until, worker

from ext_authz.state import State


def test_a_worker_answers_from_the_snapshot(state: State, client: Client, tmp_path: Path) -> None:
    publish(state, snapshot())
    with worker(state, f"unix:{tmp_path}/a.sock"):
        assert allowed(client.check(request()))
        assert not allowed(client.check(request(OTHER)))


def test_health_is_serving_only_with_a_snapshot(state: State, client: Client, tmp_path: Path) -> None:
    with worker(state, f"unix:{tmp_path}/a.sock"):
        assert client.health() == "NOT_SERVING"
        assert facts(client.check(request()))["drop"] == "203"
        publish(state, snapshot())
        wait_until(lambda: client.health("envoy.service.auth.v3.Authorization") == "SERVING", "serving")
        assert allowed(client.check(request()))


def test_health_of_an_unknown_service_is_not_found(state: State, client: Client, tmp_path: Path) -> None:
    with worker(state, f"unix:{tmp_path}/a.sock"), pytest.raises(grpc.RpcError) as raised:
        client.health("other")
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_unknown_methods_and_reflection_are_unimplemented(state: State, client: Client, tmp_path: Path) -> None:
    with worker(state, f"unix:{tmp_path}/a.sock"):
        for method in ("/x/y", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", f"{HEALTH[:-5]}Watch"):
            with pytest.raises(grpc.RpcError) as raised:
                client.channel.unary_unary(method)(b"", timeout=5, wait_for_ready=True)
            assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_published_snapshot_is_in_force_within_100_ms(state: State, client: Client, tmp_path: Path) -> None:
    publish(state, snapshot())
    took = []
    with worker(state, f"unix:{tmp_path}/a.sock"):
        client.check(request())
        for revision in range(2, 12):
            made = snapshot(revision=revision)
            publish(state, made)
            took.append(wait_until(lambda: facts(client.check(request()))["revision"] == str(revision), "it"))  # noqa: B023
    assert sorted(took)[len(took) // 2] < 0.1, took


def test_a_damaged_snapshot_leaves_the_last_in_force(state: State, client: Client, tmp_path: Path) -> None:
    publish(state, snapshot())
    with worker(state, f"unix:{tmp_path}/a.sock") as process:
        publish(state, snapshot(revision=2)[:-20])
        wait_until(lambda: page(state, process.pid).get("rejected") == 1, "the refusal")
        assert page(state, process.pid)["error"]
        assert facts(client.check(request()))["revision"] == "1"


def test_a_snapshot_that_others_may_write_is_refused(state: State, client: Client, tmp_path: Path) -> None:
    publish(state, snapshot())
    state.snapshot.chmod(0o666)
    with worker(state, f"unix:{tmp_path}/a.sock"):
        assert client.health() == "NOT_SERVING"
        assert not allowed(client.check(request()))


def test_a_removed_snapshot_changes_nothing(state: State, client: Client, tmp_path: Path) -> None:
    publish(state, snapshot())
    with worker(state, f"unix:{tmp_path}/a.sock"):
        state.snapshot.unlink()
        time.sleep(0.4)
        assert allowed(client.check(request()))


def test_no_request_fails_or_is_misjudged_while_policies_change(state: State, client: Client, tmp_path: Path) -> None:
    one, two = snapshot(), snapshot(POLICY.replace("/private", "/x"), revision=2)
    publish(state, one)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            publish(state, two)
            publish(state, one)

    with worker(state, f"unix:{tmp_path}/a.sock"):
        swapping = threading.Thread(target=swap)
        swapping.start()
        try:
            for _ in range(500):
                assert allowed(client.check(request()))
                assert not allowed(client.check(request(path="/private")))
        finally:
            ended.set()
            swapping.join()


def test_sigterm_lets_calls_under_way_end(state: State, tmp_path: Path) -> None:
    publish(state, snapshot())
    clients = [Client(f"unix:{tmp_path}/a.sock") for _ in range(4)]
    failures: list[grpc.StatusCode] = []
    answered = threading.Semaphore(0)

    def load(client: Client) -> None:
        for _ in range(100000):
            try:
                client.check(request())
                answered.release()
            except grpc.RpcError as error:
                failures.append(error.code())
                return

    with worker(state, f"unix:{tmp_path}/a.sock") as process:
        threads = [threading.Thread(target=load, args=(client,), daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        for _ in range(200):
            answered.acquire()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        for client in clients:
            client.close()
        for thread in threads:
            thread.join(15)
    # After the drain there is nobody to ask; no call was cut off.
    assert set(failures) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert not page(state, process.pid)


def test_the_socket_is_for_owner_and_group_only(state: State, tmp_path: Path) -> None:
    with worker(state, f"unix:{tmp_path}/a.sock"):
        assert stat.S_IMODE((tmp_path / "a.sock").stat().st_mode) == 0o660


def test_a_stale_socket_is_no_obstacle(state: State, client: Client, tmp_path: Path) -> None:
    publish(state, snapshot())
    for _ in range(2):
        with worker(state, f"unix:{tmp_path}/a.sock") as process:
            assert allowed(client.check(request()))
            process.kill()


@pytest.mark.parametrize("listen", ["0.0.0.0:9000", "10.0.0.1:9000", "unix:@x"])
def test_an_address_that_others_reach_is_refused(state: State, listen: str) -> None:
    command = [sys.executable, "-m", "ext_authz.service.worker", "--state", str(state.root), "--listen", listen]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=20, check=False)
    assert done.returncode != 0


def test_the_words_of_the_filter_reach_the_decision(state: State, client: Client, tmp_path: Path) -> None:
    publish(state, snapshot())
    with worker(state, f"unix:{tmp_path}/a.sock"):
        made = request(destination="127.0.0.1", port=1)
        assert not allowed(client.check(made))
        assert allowed(client.check(made, ("idmesh-destination", "default/server:80")))
        with pytest.raises(grpc.RpcError):  # Envoy denies when it gets no answer
            client.check(made, ("idmesh-direction", "sideways"))
