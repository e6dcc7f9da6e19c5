# SPDX-License-Identifier: Apache-2.0
"""Why a denied request of the demo was denied: the nearest miss in the snapshot the door decided from."""

from __future__ import annotations

from ext_authz.demo.client import Request
from ext_authz.demo.node import Node
from ext_authz.demo.stage import Workload


def nearest_miss(node: Node, request: Request, source: Workload, destination: Workload) -> str:
    return ""
