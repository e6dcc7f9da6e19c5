# SPDX-License-Identifier: Apache-2.0
"""A container whose processes have the node's user id and call themselves its own: the node has no eye for them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy_harness import missing

from ext_authz.agent.observing import MODULE
from ext_authz.process import command_line, find_processes

_WAIT = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
# Who starts it must not carry the words too: they come through the pipe.
_BECOME = f"import json, os, sys; os.execv(sys.executable, [sys.executable, '-c', {_WAIT!r}, *json.loads(input())])"


def _container() -> list[str]:
    """Words that start a program in a PID namespace of its own, with our user id as the host sees it."""
    words = ["unshare", "--pid", "--fork", "--kill-child"]
    words += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        missing("PID namespaces cannot be made here")
    return words


@contextlib.contextmanager
def _calling_itself(words: list[str], before: list[str]) -> Iterator[None]:
    command = [*before, sys.executable, "-c", _BECOME]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(json.dumps(words).encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"\n"
        yield
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("contained", [False, True])
def test_a_container_cannot_pass_for_the_nodes_processes(tmp_path: Path, contained: bool) -> None:
    """An agent that begins would wait for each to end, or drain it, and be kept from its work."""
    words = ["-m", MODULE, "--state", str(tmp_path)]
    with _calling_itself(words, _container() if contained else []):
        found = find_processes(lambda said: said[-4:] == [os.fsencode(word) for word in words])
        assert len(found) == (0 if contained else 1)
    assert command_line(os.getpid())
