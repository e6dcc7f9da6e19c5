# SPDX-License-Identifier: Apache-2.0
"""Envoy answers some requests of itself before any filter sees them; the ext_proc door lets those answers be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_harness import CLIENT, OTHER, VERSIONS, Node, ask, envoy_of, policy, running, running_config, setup_for
from envoy_worker import worker

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door, Target


@pytest.mark.parametrize("version", VERSIONS)
def test_a_redirect_to_the_plain_path_reaches_the_client(
    version: str, node: Node, backend: Backend, tmp_path: Path
) -> None:
    node.publish(policy("[{path: /a/b}]"))
    with worker(node, tmp_path / "a.sock") as service:
        setup = setup_for(Door.EXT_PROC, backend.address, authz=(Target(path=str(service.socket)),))
        with running(setup, tmp_path, envoy_of(version)) as started:
            for source in (CLIENT, OTHER):
                answer = ask(source, started, "/a%2Fb")
                assert answer.status == 307
                assert answer.headers["location"].endswith("/a/b")
            assert ask(CLIENT, started, "/a/b").status == 200
            assert ask(OTHER, started, "/a/b").status == 403
    assert len(backend.requests) == 1


def test_an_answer_of_an_upstream_that_nobody_was_asked_about_is_hidden(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    """A configuration that shows us responses only has served unjudged: the door makes that plain."""
    node.publish(policy("[{path: /a}]"))
    with worker(node, tmp_path / "a.sock") as service:
        made = json.loads(render(setup_for(Door.EXT_PROC, backend.address, authz=(Target(path=str(service.socket)),))))
        manager = made["staticResources"]["listeners"][0]["filterChains"][0]["filters"][0]["typedConfig"]
        manager["httpFilters"][0]["typedConfig"]["processingMode"]["requestHeaderMode"] = "SKIP"
        config = tmp_path / "envoy.json"
        config.write_text(json.dumps(made))
        with running_config(config, tmp_path, envoy) as started:
            assert ask(CLIENT, started, "/a").status == 403
