# SPDX-License-Identifier: Apache-2.0
"""Where the kernel gives no random bytes, a denial says so and shows nothing of the worker's memory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_harness import OTHER, Node, ask, policy, running, setup_for

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door

NO_RANDOM = """
#include <errno.h>
#include <sys/types.h>
ssize_t getrandom(void *out, size_t size, unsigned int flags)
{
	(void)out; (void)size; (void)flags;
	errno = EINTR;
	return -1;
}
"""


def test_a_denial_without_randomness_shows_no_memory(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, library = tmp_path / "none.c", tmp_path / "none.so"
    source.write_text(NO_RANDOM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    node.publish(policy(""))
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        for path in ("/a", "/" + "b" * 3000):
            denied = ask(OTHER, started, path)
            assert (denied.status, denied.headers["x-idmesh-decision-id"]) == (403, "0" * 32)
