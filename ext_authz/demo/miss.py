# SPDX-License-Identifier: Apache-2.0
"""Why a request of the demo was denied: the nearest miss in the snapshot the door decided from."""

from __future__ import annotations

from pathlib import Path

from ext_authz.demo.client import Request
from ext_authz.demo.node import Node
from ext_authz.demo.stage import Workload
from ext_authz.engine.engine import Engine
from ext_authz.engine.types import Direction, Flow, Http
from ext_authz.explain.miss import nearest_miss as find_miss
from ext_authz.explain.view import View

_TCP = 6


def nearest_miss(node: Node, request: Request, source: Workload, destination: Workload, port: int) -> str:
    """The field that failed, wanted and seen, and the rule it stands in."""
    return miss_in(node.state.snapshot, request, source.address, f"default/{destination.name}", port, node.host)


def miss_in(snapshot: Path, request: Request, source: str, destination: str, port: int, host: str) -> str:
    """The same, for the address of the source and the name of the destination."""
    view = View(Engine.open(snapshot))
    flow = Flow(
        direction=Direction.INGRESS,
        subject=destination,
        peer=source,
        protocol=_TCP,
        port=port,
        http=Http(request.method, request.path, host),
    )
    miss = find_miss(view, flow, view.engine.decide(flow))
    if miss is None:
        return "no rule allows anything"
    where = f" ({Path(miss.rule.file).name}:{miss.rule.line})" if miss.rule else ""
    return f"{miss.field}: wanted {miss.wanted}, seen {miss.seen}{where}"
