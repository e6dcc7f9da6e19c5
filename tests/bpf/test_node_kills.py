# SPDX-License-Identifier: Apache-2.0
"""
Killed at any moment: the kernel goes on judging, what was allowed goes on, and the next node clears up by itself.

The agent, the process that drives its data path, or both at once, are killed while they load, while a policy comes,
and while a workload is attached or detached. Who kills the agent starts it again, as systemd would; nothing else is
done for it. IDMESH_KILLS: how many (3 here, 1,000 in `make soak`), IDMESH_KILLS_MINUTES: no more than fit in these;
IDMESH_KILLS_SEED: of the moments.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.agent.datapath import MODULE, STARTS
from ext_authz.process import find_processes
from ext_authz.state import read_json
from tests.bpf.net import Network, eventually
from tests.bpf.node_run import NodeRun, settled
from tests.bpf.state import difference, namespace_state
from tests.bpf.traffic import Datagrams, Exchange, Knocking, Opening, Requests, Watch, pages, running

pytestmark = pytest.mark.needs_envoy

KILLS = int(os.environ.get("IDMESH_KILLS", "3"))
SEED = int(os.environ.get("IDMESH_KILLS_SEED", "0")) or random.randrange(1, 1 << 32)
MOST_S = 60 * float(os.environ.get("IDMESH_KILLS_MINUTES", "inf"))
RECOVERY_S = 120.0
ENDS = {"client": "10.0.0.1", "other": "10.0.0.2", "web": "10.0.0.3", "more": "10.0.0.4"}
WEB = ENDS["web"]
# Of connections that last, of new ones, of requests, of datagrams, and of datagrams that are denied to everybody.
STAYS, OPENS, ASKS, SAYS, SHUT = 80, 81, 82, 83, 84
POLICY = f"""\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: web, namespace: default}}
spec:
  description: version %d
  endpointSelector: {{matchLabels: {{app: web}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: client}}}}]
    toPorts:
    - ports: [{{port: "%d"}}, {{port: "{STAYS}"}}, {{port: "{OPENS}"}}, {{port: "{SAYS}"}}]
    - ports: [{{port: "{ASKS}", protocol: TCP}}]
      rules: {{http: [{{method: GET, path: "/public"}}, {{method: GET, path: "/turn/%d"}}]}}
"""


@pytest.fixture
def node(net: Network, folder: Path, cgroup: Path) -> Iterator[NodeRun]:
    for name, address in ENDS.items():
        net.add(name, address)
    made = NodeRun(net, folder, cgroup, ["--datapath", "on", "--door", "module", "--concurrency", "1"])
    made.write("policies/web.yaml", POLICY % (0, 1000, 0))
    before = settled(net)
    try:
        yield made
    finally:
        made.end()
        assert difference(before, namespace_state(net.node)) == []


class Killer:
    """Kills a node turn by turn, and has it started again."""

    def __init__(self, node: NodeRun, chance: random.Random) -> None:
        self._node, self._chance = node, chance
        self._asking: list[threading.Thread] = []
        self._began: tuple[bool, float] = True, time.monotonic()
        self._load_s = {True: 1.5, False: 0.7}  # how long agent or process takes to begin, as it was seen last
        self._hits = 0  # of the data path, since the agent began or was seen at work
        self.kills: Counter[str] = Counter()
        self.recoveries = 0

    def turn(self, number: int) -> None:
        """One kill; the node is on its way back afterwards, and perhaps not yet there."""
        moment = self._chance.choice([*("load",) * 4, "update", "attach", "detach"])
        if moment == "load":
            time.sleep(self._chance.uniform(0, self._load_s[self._began[0]]))
        else:
            self.recover()
            self._begin(moment, number)
            time.sleep(self._chance.uniform(0, 0.3))
        victim = self._chance.choice(["agent", *("data path",) * 4, "both"])
        self._kill(victim)
        self.kills[f"{victim} at {moment}"] += 1

    def _begin(self, moment: str, number: int) -> None:
        """What it is in the middle of when it is killed."""
        if moment == "update":
            self._node.write("policies/web.yaml", POLICY % (number, 1000 + number, number))
            return
        self._asking = [one for one in self._asking if one.is_alive()]
        asking = threading.Thread(target=self._ask, args=(moment,))
        asking.start()
        self._asking.append(asking)

    def _ask(self, moment: str) -> None:
        """As `idmesh endpoint` asks; whoever answers may be dead before it does."""
        where = self._node.net.ends["more"].space.path
        with contextlib.suppress(ConnectionError):
            self._node.admin(moment, "more", netns=where, labels={"app": "more"})

    def _kill(self, victim: str) -> None:
        self._revive()
        if victim != "agent":
            self._hits += kill_data_path(self._node)
        if victim != "data path":
            self._node.kill()
            self._launch()
        self._began = victim != "data path", time.monotonic()

    def _launch(self) -> None:
        self._node.launch()
        self._hits = 0

    def _revive(self) -> None:
        """An agent gives up whose data path is killed at each start; who starts it again does so then, too."""
        process = self._node.process
        assert process is not None
        if process.poll() is not None:
            log = self._node.log()
            gave_up = self._hits >= STARTS and "the data path does not start" in "".join(log.splitlines()[-10:])
            assert (process.returncode, gave_up) == (2, True), f"it ended by itself: {log}"
            self._launch()

    def recover(self) -> None:
        """Wait until it has come back by itself, and follows the newest policy."""
        eventually(self._is_back, RECOVERY_S, f"it does not come back: {self._node.log()}")
        self._hits = 0
        whole, since = self._began
        self._load_s[whole] = min(3.0, 0.1 + time.monotonic() - since)
        self.recoveries += 1

    def _is_back(self) -> bool:
        self._revive()
        process, page = self._node.process, read_json(self._node.state.status) or {}
        assert process is not None
        path = read_json(self._node.state.datapath / "page.json") or {}
        told = page.get("datapath") or {}
        if page.get("pid") != process.pid or told.get("pid") is None or told["pid"] != path.get("pid"):
            return False
        return bool(path["revision"] >= page["revision"] and self._node.state.admin.exists())

    def finish(self) -> None:
        """Nobody asks any more."""
        self.recover()
        for asking in self._asking:
            asking.join(RECOVERY_S)


def test_a_killed_node_leaves_nothing_unjudged_and_loses_nothing_and_comes_back(node: NodeRun) -> None:
    killer = Killer(node, random.Random(SEED))
    node.start()
    for name in ("client", "other", "web"):
        node.attach(name, app=name)
    client, other, web, more = (node.net.ends[name] for name in ENDS)
    killer.recover()
    lasting, opening = Exchange(client, web, (WEB, STAYS)), Opening(client, web, (WEB, OPENS))
    said, shut = Datagrams(client, web, (WEB, SAYS)), Datagrams(other, web, (WEB, SHUT))
    knocking = [Knocking(end, (WEB, port)) for end in (other, more) for port in (OPENS, ASKS)]
    with pages(web, (WEB, ASKS)) as asked, Watch(web, ENDS["other"], ENDS["more"]) as leaked:
        public = Requests(client, (WEB, ASKS), "/public")
        secret = Requests(client, (WEB, ASKS), "/secret", may_break=True)
        with running(lasting, opening, said, shut, public, secret, *knocking):
            until = time.monotonic() + MOST_S
            for number in range(1, KILLS + 1):
                killer.turn(number)
                if time.monotonic() > until:
                    break
            node.write("policies/web.yaml", POLICY % (KILLS + 1, 1000, KILLS + 1))
            killer.finish()
            last = Requests(client, (WEB, ASKS), f"/turn/{KILLS + 1}", may_break=True)
            with running(last):
                eventually(lambda: last.answers[200], RECOVERY_S, "the last policy never came into force")
        frames = leaked.count()
    tries = sum(one.times for one in knocking) + shut.sent
    print(
        f"seed {SEED}: {killer.kills.total()} kills {dict(sorted(killer.kills.items()))}, "
        f"{killer.recoveries} recoveries waited for; "
        f"lasting connection {lasting.times} exchanges, {opening.times} new connections, {said.arrived} of {said.sent} "
        f"datagrams, requests {dict(public.answers)} on one connection; denied: {tries} tries, {frames} frames"
    )
    assert [one.broken for one in (lasting, opening, said, shut, public, secret, *knocking)] == [""] * 10
    assert said.arrived == said.sent
    assert set(public.answers) == {200}
    assert (shut.arrived, [one.came for one in knocking], frames) == (0, [0] * 4, 0)
    assert "/secret" not in asked
    assert 200 not in secret.answers
    assert min(one.times for one in (lasting, opening, said, shut, public, *knocking)) > killer.kills.total()
    # What was half attached is tried again after a while.
    eventually(lambda: stages(node) == {"attached"}, RECOVERY_S, f"half attached: {node.log()}")
    status = node.json("datapath", "status")
    assert {one["endpoint"] for one in status["attached"]} >= {"default/client", "default/other", "default/web"}
    eventually(lambda: not node.json("datapath", "status")["warnings"], 30, f"{status['warnings']} {node.log()}")
    assert len(list((node.state.datapath_pins / "sets").iterdir())) == 1
    log = (node.folder / "log").read_text()
    assert (log.count("Envoy started"), log.count("draining")) == (1, 0)


def test_an_agent_whose_data_path_never_comes_up_leaves_envoy_to_the_next(node: NodeRun) -> None:
    node.start()
    eventually(lambda: envoy_of(node), 20)
    before = envoy_of(node)
    node.kill()
    node.launch()
    process = node.process
    assert process is not None
    eventually(lambda: (kill_data_path(node), process.poll() is not None)[1], 60, "it goes on trying")
    assert process.returncode == 2, node.log()
    node.start()
    eventually(lambda: envoy_of(node), 20)
    assert envoy_of(node) == before


def envoy_of(node: NodeRun) -> int | None:
    return (read_json(node.state.status) or {}).get("envoy")


def kill_data_path(node: NodeRun) -> bool:
    """False: none ran."""
    root = os.fsencode(node.state.root)
    found = find_processes(lambda words: MODULE.encode() in words and root in words)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(found)


def stages(node: NodeRun) -> set[str]:
    return {one["stage"] for one in node.json("datapath", "status")["attached"]}
