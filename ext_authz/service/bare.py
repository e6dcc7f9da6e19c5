# SPDX-License-Identifier: Apache-2.0
"""
The bare server: same loop, settings and messages as the service, but it allows everything unread.

It is the yardstick for what a decision costs (benchmarks.md) and is never started by a command.
Run: python -m ext_authz.service.bare unix:PATH
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from envoy.service.auth.v3 import external_auth_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2
from google.rpc import status_pb2

from ext_authz.service.listen import clear_stale, parse_address
from ext_authz.service.loop import LoopServer, Metadata
from ext_authz.service.streams import OK, Answer, Last

METHOD = "/envoy.service.auth.v3.Authorization/Check"
PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
ALLOW = external_auth_pb2.CheckResponse(
    status=status_pb2.Status(), ok_response=external_auth_pb2.OkHttpResponse()
).SerializeToString()


def allow(_metadata: Metadata) -> Callable[[bytes], bytes]:
    return lambda _request: ALLOW


CONTINUE = (
    external_processor_pb2.ProcessingResponse(request_headers={}).SerializeToString(),
    external_processor_pb2.ProcessingResponse(response_headers={}).SerializeToString(),
)


class Pass:
    """One stream, which ends as the service's do: the request's headers come first, then the response's."""

    __slots__ = ("_came",)

    def __init__(self, _metadata: Metadata) -> None:
        self._came = 0

    def receive(self, _message: bytes) -> Answer:
        self._came += 1
        return CONTINUE[0] if self._came == 1 else Last(CONTINUE[1], OK, "")

    def is_settled(self) -> bool:
        return True

    def close(self) -> None:
        pass


def main(arguments: list[str]) -> int:
    address = parse_address(arguments[0])
    clear_stale(address)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    server = LoopServer({METHOD: allow}, {PROCESS: Pass})
    server.bind(address.text)
    server.start()
    print("ready", flush=True)
    signal.sigwait((signal.SIGTERM, signal.SIGINT))
    server.stop(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
