# SPDX-License-Identifier: Apache-2.0
"""Laws of `idmesh run` with an Envoy of its own: one command from policies to requests judged."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
from envoy_harness import CLIENT, OTHER, ROOT, wait_until
from envoy_run import RULES, Run, ended
from envoy_tls import TRUST_DOMAIN, Pki
from envoy_tls import WORLD as ACCOUNTS

from ext_authz.agent.status import read_status


@pytest.mark.parametrize("door", ["module", "ext-authz", "ext-proc"])
def test_one_command_goes_from_policies_to_requests_judged(run: Run, door: str) -> None:
    run.start(*run.door(door))
    assert run.status(CLIENT, "/private") == 403
    assert run.status(OTHER, "/public/x") == 403
    # One worker serves both gRPC doors.
    reader = "module" if door == "module" else "ext-authz"
    assert [found.door for found in read_status(run.state).readers] == [reader]


@pytest.mark.parametrize("door", ["module", "ext-authz"])
def test_a_change_is_in_force_in_the_door_within_100_ms_of_the_rename(run: Run, door: str) -> None:
    run.start(*run.door(door))
    took = []
    for turn in range(6):
        wanted = 403 if turn % 2 == 0 else 200
        run.write("[{path: /elsewhere}]" if wanted == 403 else RULES)
        started = time.monotonic()
        wait_until(lambda: run.status(CLIENT, "/public/x") == wanted, "the change")  # noqa: B023
        took.append(time.monotonic() - started)
    assert sorted(took)[len(took) // 2] < 0.15, took


def test_its_listener_can_ask_for_certificates(run: Run) -> None:
    pki = Pki(run.folder / "pki")
    words = ["--tls-cert", str(pki.leaf("IP:127.1.0.21")), "--tls-key", str(pki.key), "--tls-ca", str(pki.authority)]
    words += ["--trust-domain", TRUST_DOMAIN, "--require", "certificate"]
    (run.folder / "endpoints/pods.yaml").write_text(ACCOUNTS)
    run.tls = pki.context(pki.leaf(f"URI:spiffe://{TRUST_DOMAIN}/ns/default/sa/walker"))
    run.start(*run.door("module"), *words)
    assert run.status(CLIENT, "/private") == 403
    run.tls = pki.context(pki.leaf(f"URI:spiffe://{TRUST_DOMAIN}/ns/default/sa/talker"))
    assert run.status(CLIENT, "/public/x") == 403
    run.tls = pki.context(None)
    assert run.status(CLIENT, "/public/x") == 0
    refused = subprocess.run(
        [sys.executable, "-m", "ext_authz.cli", "run", "--policies", str(run.folder / "policies"), *words],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        check=False,
    )
    assert (refused.returncode, refused.stderr) == (2, b"idmesh run: --tls-cert needs --door\n")


def test_sigterm_drains_and_leaves_nothing(run: Run) -> None:
    run.start(*run.door("ext-authz"), "--workers", "2")
    wait_until(lambda: len(run.pids()) == 3, "Envoy and two workers")
    pids = run.pids()
    answers: list[int] = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            answers.append(run.status(CLIENT, "/public/x"))

    loading = threading.Thread(target=load)
    loading.start()
    time.sleep(0.3)
    assert run.stop() == 0
    done.set()
    loading.join()
    # A request was served, or found nobody: none was denied for want of a service.
    assert set(answers) <= {200, 0}
    assert all(ended(pid) for pid in pids)


def test_a_killed_envoy_is_started_again(run: Run) -> None:
    run.start(*run.door("module"))
    before = run.pids()[0]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: run.envoy_now() not in (None, before), "another Envoy")
    wait_until(lambda: run.status(CLIENT, "/public/x") == 200, "its listener")


def test_only_its_owner_reaches_envoys_admin_interface(run: Run) -> None:
    run.umask = 0
    run.start(*run.door("module"))
    assert stat.S_IMODE((run.state.root / "envoy-admin.sock").stat().st_mode) == 0o600


def test_a_configuration_of_ones_own_is_run_as_it_is(run: Run) -> None:
    config = run.folder / "own.json"
    config.write_text(json.dumps(json.loads(run.configuration())))
    run.start("--envoy", str(config))
    assert run.status(CLIENT, "/private") == 403
