# SPDX-License-Identifier: Apache-2.0
"""gRPC servers of tests: as a backend at a free port, or as a service that Envoy asks at a socket."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from ext_authz.xds.setup import Target


@contextlib.contextmanager
def grpc_server(
    service: str, methods: Mapping[str, grpc.RpcMethodHandler], address: Target | None = None, host: str = "127.0.0.1"
) -> Iterator[Target]:
    """Serves these methods; without an address at a free port of the host."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    if address is None:
        address = Target(host, server.add_insecure_port(f"{host}:0"))
    else:
        server.add_insecure_port(address.text)
    server.start()
    try:
        yield address
    finally:
        server.stop(None).wait()


def unary(answer: Callable[[bytes, grpc.ServicerContext], bytes]) -> grpc.RpcMethodHandler:
    """A method of bytes."""
    return grpc.unary_unary_rpc_method_handler(answer)


def typed(
    make: Callable[..., grpc.RpcMethodHandler], answer: Callable[..., Any], request: Any
) -> grpc.RpcMethodHandler:
    """A method whose requests are of a message's class, and its answers any message."""
    return make(
        answer,
        request_deserializer=request.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )


def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
    """The request itself, or NOT_FOUND where it is "fail"."""
    if request == b"fail":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such ship")
    return request


@contextlib.contextmanager
def unanswered(folder: Path) -> Iterator[tuple[Target, Target]]:
    """Where nobody listens, and where somebody listens and says nothing."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / "silent"))
        silent.listen()
        yield Target(path=str(folder / "nobody")), Target(path=str(folder / "silent"))
