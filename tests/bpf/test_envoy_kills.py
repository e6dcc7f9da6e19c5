# SPDX-License-Identifier: Apache-2.0
"""
Envoy killed under load: what it would have to judge is refused, and not a byte of it reaches the server meanwhile.

IDMESH_ENVOY_KILLS: how many (3 here, 100 in `make soak`).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.envoy_binary import find_envoy
from tests.bpf.net import Capture, eventually
from tests.bpf.steered import Steered, policy
from tests.bpf.traffic import Asking, pages, running

pytestmark = pytest.mark.needs_envoy

KILLS = int(os.environ.get("IDMESH_ENVOY_KILLS", "3"))
SERVER = ("10.1.0.2", 8080)
REQUESTS = """
ingress:
- fromEndpoints: [{matchLabels: {app: client}}]
  toPorts:
  - ports: [{port: '8080', protocol: TCP}]
    rules: {http: [{method: GET, path: /public}]}
"""


@pytest.fixture
def site(folder: Path, cgroup: Path) -> Iterator[Steered]:
    with Steered(folder, cgroup) as made:
        yield made


def test_with_envoy_killed_under_load_requests_are_refused_and_none_leaks(site: Steered) -> None:
    chance, envoy = random.Random(4), find_envoy()
    client, server = site.add("client", "10.1.0.1"), site.add("server", SERVER[0])
    site.apply(policy(REQUESTS))
    site.start(envoy, concurrency=1)
    public, secret = Asking(client, SERVER, "/public"), Asking(client, SERVER, "/secret")
    leaked = 0
    with pages(server, SERVER) as asked, running(public, secret):
        for _ in range(KILLS):
            eventually(lambda before=public.answers[200]: public.answers[200] > before, 30, "Envoy serves nobody")
            time.sleep(chance.uniform(0, 0.1))
            site.stop(kill=True)
            tried = public.answers[0]
            with Capture(server) as capture:
                # The one that was under way is answered for; the server may still have been at it.
                eventually(lambda tried=tried: public.answers[0] > tried + 2, 30, "without Envoy nobody is refused")
                seen = asked["/public"]
                eventually(lambda tried=tried: public.answers[0] > tried + 20, 30, "without Envoy nobody is refused")
                leaked += len(capture.having(b"GET /"))
            assert asked["/public"] == seen
            site.start(envoy, concurrency=1)
    print(
        f"{KILLS} kills of Envoy; allowed requests {dict(public.answers)}, denied {dict(secret.answers)} (0: refused); "
        f"{leaked} frames with a request while it was dead, {asked['/secret']} denied requests at the server"
    )
    assert (public.broken, secret.broken) == ("", "")
    assert set(public.answers) == {200, 0}
    assert 200 not in secret.answers
    assert (leaked, asked["/secret"]) == (0, 0)
