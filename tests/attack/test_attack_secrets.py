# SPDX-License-Identifier: Apache-2.0
"""What a client sends in confidence stands in no log of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attack_service import Service, door_setup
from envoy_backend import Backend
from envoy_harness import CLIENT, VERSIONS, Node, ask, envoy_of, policy, running

from ext_authz.xds.setup import Door

SECRET = "s3cr3t-t0ken"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("door", [Door.MODULE, Door.EXT_AUTHZ, Door.EXT_PROC])
def test_queries_and_credentials_are_not_logged(
    door: Door, version: str, node: Node, authz: Service, backend: Backend, tmp_path: Path
) -> None:
    node.publish(policy("[{path: '/public/.*'}]"))
    log = tmp_path / "access.log"
    setup = door_setup(door, backend.address, node, authz, access_log=str(log))
    with running(setup, tmp_path, envoy_of(version)) as started:
        headers = {"Authorization": f"Bearer {SECRET}", "Cookie": f"session={SECRET}"}
        assert ask(CLIENT, started, f"/public/a?token={SECRET}", headers=headers).status == 200
        assert ask(CLIENT, started, f"/private?token={SECRET}", headers=headers).status == 403
        assert backend.requests[-1].path.endswith(SECRET)  # the backend gets it all the same
    # Envoy writes it out when it ends.
    assert SECRET not in log.read_text()
    assert SECRET not in started.log.read_text()
    assert [json.loads(line)["path"] for line in log.read_text().splitlines()] == ["/public/a", "/private"]
