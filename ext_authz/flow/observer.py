# SPDX-License-Identifier: Apache-2.0
"""
The observer: `python -m ext_authz.flow.observer --state DIR [--flows FILE|-] [--metrics HOST:PORT]`.

It takes rings in at STATE/flows.sock, writes their records as lines, answers at STATE/api.sock and counts for
Prometheus. It decides nothing: without it records are lost and counted, and it finds the rings again when it is back.
SIGTERM lets it read what stands in the rings, then it ends; SIGHUP opens the file anew.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ext_authz import logs
from ext_authz.flow.api import ReadServer, ReadService, Status
from ext_authz.flow.endpoint import Endpoint, MetricsAddressError, parse_metrics_address
from ext_authz.flow.hub import Hub
from ext_authz.flow.hubble import Formatter
from ext_authz.flow.intake import Intake
from ext_authz.flow.metrics import make_registry
from ext_authz.flow.names import Names
from ext_authz.flow.reading import Reading
from ext_authz.flow.sink import make_sink
from ext_authz.logs import event
from ext_authz.privileges import OF_DATA_PATH, give_up
from ext_authz.state import State

log = logging.getLogger("ext_authz.flow.observer")  # also where it runs as __main__

_NAMES_S = 0.5
_GRACE_S = 0.5
_DRAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """flows: a file, "-" for stdout, or None. metrics: HOST:PORT or None. node: what lines call this node."""

    state: State
    node: str
    flows: str | None = None
    metrics: str | None = None
    metrics_anywhere: bool = False
    redact: bool = True


class Observer:
    """Everything the process holds."""

    def __init__(self, options: Options, status: Status | None = None) -> None:
        state = options.state
        self._reopening = asyncio.Event()
        self.hub = Hub()
        self.sink = make_sink(options.flows)
        self.intake = Intake(state.root / "flows.sock")
        names = Names(state.snapshot)
        self.reading = Reading(self.intake, names, Formatter(names, options.node, options.redact), self.hub, self.sink)
        self.server = ReadServer(state.root / "api.sock", ReadService(self.hub, status))
        self.metrics: Endpoint | None = None
        if options.metrics:
            address = parse_metrics_address(options.metrics, options.metrics_anywhere)
            self.metrics = Endpoint(address, make_registry(state, self.reading.counts, self.intake, self.hub))

    async def run(self) -> None:
        """
        Run until SIGTERM or SIGINT.

        Raises:
            OSError: A socket cannot be made.
        """
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        loop.add_signal_handler(signal.SIGHUP, self._reopening.set)
        await self.reading.follow_names()
        self.intake.listen()
        await self.server.start()
        if self.metrics:
            await self.metrics.start()
        event(log, logging.INFO, "observing", state=self.server.path.parent)
        reading = asyncio.create_task(self.reading.run())
        followed = (self._follow_names(), self._follow_hangups(), _when(ended))
        others = [asyncio.create_task(one) for one in followed]
        try:
            done, _ = await asyncio.wait([reading, *others], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a loop that ended has failed: let it be seen
        finally:
            await self._stop(reading, others)

    async def _follow_names(self) -> None:
        while True:
            await asyncio.sleep(_NAMES_S)
            await self.reading.follow_names()

    async def _follow_hangups(self) -> None:
        """Whoever moved the file away says so by SIGHUP."""
        while True:
            await self._reopening.wait()
            self._reopening.clear()
            try:
                await self.reading.reopen()
            except OSError as error:
                event(log, logging.WARNING, "cannot open the file of flows anew", reason=error)

    async def _stop(self, reading: asyncio.Task[None], others: list[asyncio.Task[None]]) -> None:
        self.reading.stop()
        await asyncio.wait([reading], timeout=_DRAIN_S)
        stuck = not reading.done()
        for task in others:
            task.cancel()
        self.intake.close()
        self.hub.close()
        await self.server.stop(_GRACE_S)
        if self.metrics:
            await self.metrics.stop()
        self.sink.close()
        event(log, logging.INFO, "stopped", flows=self.hub.seen, lost=self.hub.lost)
        if stuck:
            # A thread that waits for a reader of our stdout would keep the process for ever.
            event(log, logging.ERROR, "lines could not be written in time, they are lost")
            os._exit(1)


async def _when(happened: asyncio.Event) -> None:
    await happened.wait()


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="idmesh-observer", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, metavar="DIR")
    parser.add_argument("--flows", metavar="FILE", help="write lines to FILE (rotated), - for stdout")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="serve Prometheus metrics (loopback)")
    parser.add_argument(
        "--metrics-anywhere", action="store_true", help="let --metrics be another address than loopback"
    )
    parser.add_argument("--redact", choices=("on", "off"), default="on", help="query strings and credentials (on)")
    parser.add_argument("--node", default=socket.gethostname(), metavar="NAME", help="node_name of the lines")
    parser.add_argument("--log", default="INFO")
    return parser.parse_args(arguments)


def main(arguments: list[str], make_status: Callable[[State], Status] | None = None) -> int:
    """
    Args:
        make_status: Gives what GetStatus answers with; who starts this knows it, this package does not.
    """
    args = parse(arguments)
    logs.install(args.log)
    give_up(OF_DATA_PATH)
    os.umask(0o077)
    state = State(args.state.absolute())
    options = Options(state, args.node, args.flows, args.metrics, args.metrics_anywhere, args.redact == "on")
    try:
        observer = Observer(options, make_status(state) if make_status else None)
        asyncio.run(observer.run())
    except (OSError, MetricsAddressError) as error:
        event(log, logging.ERROR, "cannot observe", reason=error)
        return 1
    return 0


if __name__ == "__main__":
    # The program is the top, as ext_authz.cli is: here alone the status page, which lies higher, is wired in.
    from ext_authz.agent.status import read_status
    from ext_authz.commands.status import as_record

    sys.exit(main(sys.argv[1:], lambda state: lambda: as_record(read_status(state))))
