# SPDX-License-Identifier: Apache-2.0
"""The node's Read service, as commands ask it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from ext_authz.cli import Failure
from ext_authz.pb.idmesh.v1 import node_pb2_grpc
from ext_authz.state import default_state


@contextlib.contextmanager
def read_service(state: Path | None) -> Iterator[Any]:
    """
    The stub of the node with this state directory.

    Raises:
        Failure: None runs there, or it may not be asked; also where a call in the block fails.
    """
    path = (state or default_state()).absolute() / "api.sock"
    _probe(path)
    # No balancing, no retries: the socket is there or not. One channel of its own for each command.
    channel = grpc.insecure_channel(
        f"unix:{path}", options=(("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    )
    try:
        yield node_pb2_grpc.ReadStub(channel)
    except grpc.RpcError as error:
        raise Failure(_reason(error, path)) from None
    finally:
        channel.close()


def _probe(path: Path) -> None:
    """gRPC would only say "unavailable"."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            raise Failure(f"{path}: no such socket; does a node run with this state directory?") from None
        except ConnectionRefusedError:
            raise Failure(f"{path}: nobody answers; the node's observer does not run") from None
        except PermissionError:
            raise Failure(f"{path}: only its owner and the group idmesh may ask the node") from None
        except OSError as error:
            raise Failure(f"{path}: {error.strerror or error}") from None


def _reason(error: Any, path: Path) -> str:
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        return f"{path}: the node's observer went away"
    return str(error.details() or error.code().name)
