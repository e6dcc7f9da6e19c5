# SPDX-License-Identifier: Apache-2.0
"""Laws of reading: everything is counted, and lines are made of what somebody wants, whenever they begin to want it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from flow_rings import Producer

from ext_authz.flow.backlog import Backlog
from ext_authz.flow.hub import Hub
from ext_authz.flow.hubble import Formatter
from ext_authz.flow.intake import Intake
from ext_authz.flow.names import Names
from ext_authz.flow.pace import PAUSE_MAX_S, PAUSE_MIN_S, Pace
from ext_authz.flow.reading import Reading
from ext_authz.flow.sink import NoSink

MANY = 300


def scene(
    names: Names, formatter: Formatter, folder: Path, act: Callable[[Reading, Hub, Producer], Awaitable[None]]
) -> None:
    """A reading without a file, one ring handed over to it."""

    async def scenario() -> None:
        producer, hub, intake = Producer(1 << 20), Hub(), Intake(folder / "flows.sock")
        intake.listen()
        reading = Reading(intake, names, formatter, hub, NoSink())
        with producer.connect(folder / "flows.sock"):
            while not intake.rings:
                await asyncio.sleep(0.001)
            await act(reading, hub, producer)
        intake.close()

    asyncio.run(scenario())


def paths(hub: Hub) -> list[str]:
    return [seen.facts.path for seen in hub.newest()]


def test_many_records_are_counted_at_once_and_become_flows_when_asked_for(
    names: Names, formatter: Formatter, tmp_path: Path
) -> None:
    async def act(reading: Reading, hub: Hub, producer: Producer) -> None:
        for number in range(MANY):
            assert producer.put(path=b"/%d" % number)
        while await reading.turn():
            pass
        assert sum(reading.counts.flows.values()) == hub.seen == MANY
        assert not hub.newest()
        assert producer.put(path=b"/last")
        await reading.turn()
        await hub.settle()
        assert paths(hub) == [*(f"/{number}" for number in range(MANY)), "/last"]
        assert sum(reading.counts.flows.values()) == hub.seen == MANY + 1

    scene(names, formatter, tmp_path, act)


def test_few_records_become_flows_at_once(names: Names, formatter: Formatter, tmp_path: Path) -> None:
    async def act(reading: Reading, hub: Hub, producer: Producer) -> None:
        assert producer.put(path=b"/few")
        await reading.turn()
        assert paths(hub) == ["/few"]

    scene(names, formatter, tmp_path, act)


def test_a_follower_sees_what_comes_and_not_what_was_held(names: Names, formatter: Formatter, tmp_path: Path) -> None:
    async def act(reading: Reading, hub: Hub, producer: Producer) -> None:
        for _ in range(MANY):
            assert producer.put(path=b"/before")
        await reading.turn()
        await hub.settle()
        follower = hub.follow()
        for _ in range(MANY):
            assert producer.put(path=b"/after")
        while await reading.turn():
            pass
        got: list[str] = []
        while len(got) < MANY:
            got += [seen.facts.path for seen in await follower.next()]
        assert got == ["/after"] * MANY

    scene(names, formatter, tmp_path, act)


def test_a_backlog_forgets_the_oldest_but_never_the_newest() -> None:
    backlog = Backlog(records_max=10, bytes_max=100)
    for number in range(9):
        backlog.add(bytes([number]) * 10, 4)
    assert backlog.records == 12  # one batch less would be too few
    assert [backlog.pop()[0] for _ in range(3)] == [6, 7, 8]
    assert not backlog
    backlog.add(b"a" * 90, 1)
    backlog.add(b"b" * 90, 1)
    assert backlog.pop()[:1] == b"b"


def test_the_pause_follows_from_how_fast_a_ring_fills() -> None:
    pace, size = Pace(), 1 << 21
    for _ in range(20):
        idle = pace.pause()
    assert idle == PAUSE_MAX_S
    pace.saw(size // 5, size)
    assert pace.pause() == 0  # there is more
    assert pace.pause() == PAUSE_MAX_S / 2
    for _ in range(9):
        pace.saw(size * 3 // 4, size)
        assert pace.pause() == 0
        pause = pace.pause()
    assert pause == PAUSE_MIN_S
