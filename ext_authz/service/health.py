# SPDX-License-Identifier: Apache-2.0
"""
grpc.health.v1 Check: SERVING only while a snapshot is in force.

Watch is left unimplemented, which the protocol allows and clients fall back from; Envoy only uses Check.

Source: grpc/health/v1/health.proto.
"""

from __future__ import annotations

from collections.abc import Callable

from grpc_health.v1 import health_pb2

from ext_authz.service import checker, processor
from ext_authz.service.loop import CallError, Metadata

METHOD = "/grpc.health.v1.Health/Check"
SERVICES = ("", checker.SERVICE, processor.SERVICE)
_NOT_FOUND = 5
_STATUS = health_pb2.HealthCheckResponse


class Health:
    """Answers health checks from a function that says whether we can decide."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self.draining = False

    def method(self, _metadata: Metadata) -> Callable[[bytes], bytes]:
        return self.check

    def check(self, data: bytes) -> bytes:
        name = health_pb2.HealthCheckRequest.FromString(data).service
        if name not in SERVICES:
            raise CallError(_NOT_FOUND, "unknown service")
        serving = self._ready() and not self.draining
        return _STATUS(status=_STATUS.SERVING if serving else _STATUS.NOT_SERVING).SerializeToString()
