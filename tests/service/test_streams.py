# SPDX-License-Identifier: Apache-2.0
"""Laws of streams on the loop, over real gRPC."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from checks import snapshot
from envoy.service.ext_proc.v3 import external_processor_pb2 as proc
from procs import allowed, request, response
from service_run import page, publish, wait_until, worker

from ext_authz.service.loop import OPTIONS, LoopServer
from ext_authz.service.processor import METHOD
from ext_authz.service.streams import Answer, Last
from ext_authz.state import State

_PATH = "/test/Stream"
_MOST = 8


class Echo:
    """Answers what it is told to; `settled` is whether the stream may end well."""

    made: list[Echo]

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.settled = False
        self.closed = 0

    def receive(self, message: bytes) -> Answer:
        self.heard.append(message)
        if message == b"settle":
            self.settled = True
        if message == b"fail":
            raise RuntimeError("on purpose")
        if message == b"nothing":
            return None
        return Last(b"bye", 7, "denied") if message == b"last" else message

    def is_settled(self) -> bool:
        return self.settled

    def close(self) -> None:
        self.closed += 1


class Stage:
    """A server with one kind of stream, and a client."""

    def __init__(self, address: str) -> None:
        self.made: list[Echo] = []
        self.server = LoopServer({}, {_PATH: self._make}, _MOST)
        self.server.bind(address)
        self.server.start()
        self.channel = grpc.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))

    def _make(self, _metadata: object) -> Echo:
        self.made.append(Echo())
        return self.made[-1]

    def open(self, timeout: float = 30) -> Call:
        return Call(self.channel.stream_stream(_PATH), timeout)

    def talking(self) -> Call:
        """A stream that the server has taken on."""
        call = self.open()
        assert call.say(b"hello") == b"hello"
        return call


class Call:
    """One stream of the client's."""

    def __init__(self, method: Any, timeout: float) -> None:
        self._said: queue.Queue[bytes | None] = queue.Queue()
        self.call = method(iter(self._said.get, None), timeout=timeout, wait_for_ready=True)

    def send(self, message: bytes) -> None:
        self._said.put(message)

    def say(self, message: bytes) -> bytes:
        self.send(message)
        return bytes(next(self.call))

    def half_close(self) -> None:
        self._said.put(None)

    def status(self) -> grpc.StatusCode:
        """Wait for the end."""
        code = self.call.code()
        self.half_close()
        return code


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(f"unix:{tmp_path}/a.sock")
    yield made
    made.channel.close()
    made.server.stop(0.0)


def closed(stage: Stage, index: int = 0) -> None:
    wait_until(lambda: stage.made[index].closed == 1, "the handler's end")
    wait_until(lambda: not stage.server.streams.open, "no open stream")


def test_each_message_is_answered_in_turn(stage: Stage) -> None:
    call = stage.talking()
    for i in range(100):
        assert call.say(str(i).encode()) == str(i).encode()
    call.say(b"settle")
    call.half_close()
    assert call.status() == grpc.StatusCode.OK
    closed(stage)


def test_a_message_may_have_no_answer(stage: Stage) -> None:
    call = stage.open()
    for message in (b"nothing", b"nothing", b"settle"):
        call.send(message)
    assert next(call.call) == b"settle"
    assert stage.made[0].heard == [b"nothing", b"nothing", b"settle"]


def test_an_unsettled_stream_that_is_half_closed_does_not_end_well(stage: Stage) -> None:
    for call in (stage.open(), stage.talking()):
        call.half_close()
        assert call.status() == grpc.StatusCode.INTERNAL


def test_the_last_answer_comes_before_the_status(stage: Stage) -> None:
    call = stage.talking()
    assert call.say(b"last") == b"bye"
    assert call.status() == grpc.StatusCode.PERMISSION_DENIED
    closed(stage)


def test_a_cancelled_stream_is_closed(stage: Stage) -> None:
    call = stage.talking()
    call.call.cancel()
    closed(stage)
    assert stage.talking().say(b"x") == b"x"


def test_a_peer_that_goes_away_closes_its_streams(stage: Stage) -> None:
    calls = [stage.talking() for _ in range(5)]
    stage.channel.close()
    wait_until(lambda: all(one.closed == 1 for one in stage.made), "the end of all")
    del calls


def test_a_deadline_ends_the_stream(stage: Stage) -> None:
    call = stage.open(timeout=0.3)
    assert call.say(b"hello") == b"hello"
    assert call.status() == grpc.StatusCode.DEADLINE_EXCEEDED
    closed(stage)


def test_a_failing_handler_ends_its_stream_alone(stage: Stage) -> None:
    other, call = stage.talking(), stage.talking()
    call.send(b"fail")
    assert call.status() == grpc.StatusCode.INTERNAL
    wait_until(lambda: stage.made[1].closed == 1, "the handler's end")
    assert other.say(b"x") == b"x"


def test_streams_over_the_limit_are_refused_until_others_end(stage: Stage) -> None:
    calls = [stage.talking() for _ in range(_MOST)]
    assert stage.open().status() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stage.server.streams.refused == 1
    assert calls[0].say(b"x") == b"x"
    calls[0].call.cancel()
    wait_until(lambda: len(stage.server.streams.open) < _MOST, "room")
    assert stage.talking().say(b"x") == b"x"


def test_a_message_over_the_limit_ends_its_stream(stage: Stage) -> None:
    limit = dict(OPTIONS)["grpc.max_receive_message_length"]
    call = stage.talking()
    assert call.say(b"x" * (limit - 10)) is not None
    call.send(b"x" * (limit + 1))
    assert call.status() == grpc.StatusCode.RESOURCE_EXHAUSTED
    closed(stage)
    assert len(stage.made[0].heard) == 2


def test_a_drain_ends_settled_streams_well_and_the_others_not(stage: Stage) -> None:
    settled, other = stage.talking(), stage.talking()
    settled.say(b"settle")
    stopped: list[bool] = []
    stopping = threading.Thread(target=lambda: stopped.append(stage.server.stop(2.0)))
    stopping.start()
    assert other.say(b"x") == b"x"  # those under way are answered meanwhile
    assert settled.status() == grpc.StatusCode.OK
    assert other.status() == grpc.StatusCode.UNAVAILABLE
    stopping.join(10)
    assert stopped == [False]
    assert [one.closed for one in stage.made] == [1, 1]


def test_a_drain_without_streams_is_clean(stage: Stage) -> None:
    stage.talking().call.cancel()
    closed(stage)
    assert stage.server.stop(2.0)


# ---- many, in a process of its own ----


def rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


_LOOP = asyncio.new_event_loop()  # grpc.aio serves one loop of a process


def run_many(address: str, count: int, then: Callable[[list[Any]], Any]) -> None:
    """Open silent streams, let `then` look, and close all."""

    async def main() -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            method = channel.stream_stream(
                METHOD, proc.ProcessingRequest.SerializeToString, proc.ProcessingResponse.FromString
            )
            calls = [method(metadata=(("idmesh-peer", "source-address"),)) for _ in range(count)]
            await asyncio.wait_for(then(calls), 60)
            for call in calls:
                call.cancel()

    _LOOP.run_until_complete(main())


async def until(holds: Callable[[], object], what: str) -> None:
    for _ in range(6000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"waited for {what}")


def test_ten_thousand_silent_streams_cost_little_and_all_are_answered(state: State, tmp_path: Path) -> None:
    count = 10_000
    publish(state, snapshot())
    with worker(state, f"unix:{tmp_path}/a.sock") as process:

        def told(name: str) -> object:
            return page(state, process.pid).get("ext_proc", {}).get(name)  # type: ignore[attr-defined]

        async def look(calls: list[Any]) -> None:
            await until(lambda: told("streams") == count, "the streams")
            assert rss_kib(process.pid) - before < count * 40, "40 KiB a stream"
            for call in calls[:: count // 200]:
                await call.write(request())
                assert allowed(await call.read())
                await call.write(response())
                assert (await call.read()).HasField("response_headers")

        run_many(f"unix:{tmp_path}/a.sock", 10, lambda _: asyncio.sleep(0))
        wait_until(lambda: told("streams") == 0, "a quiet worker")
        before = rss_kib(process.pid)
        for _ in range(2):  # what one crowd left serves the next
            run_many(f"unix:{tmp_path}/a.sock", count, look)
            wait_until(lambda: told("streams") == 0, "their end", 30)
            wait_until(lambda: rss_kib(process.pid) < before + count * 4, "memory given back")


def test_streams_over_the_workers_limit_are_refused(state: State, tmp_path: Path) -> None:
    publish(state, snapshot())
    with worker(state, f"unix:{tmp_path}/a.sock", "--streams", "5"):

        async def look(calls: list[Any]) -> None:
            await until(lambda: sum(call.done() for call in calls) == 15, "15 refusals")
            for call in calls:
                if call.done():
                    assert await call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                else:
                    await call.write(request())
                    assert allowed(await call.read())

        run_many(f"unix:{tmp_path}/a.sock", 20, look)
