# SPDX-License-Identifier: Apache-2.0
"""
Services on their way from the compiling process to the data path's: STATE/datapath/services.json.

The snapshot has no Services in it, because policies judge the backend that a connection really goes to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ext_authz.model.types import Service
from ext_authz.state import State, write_atomic

if TYPE_CHECKING:
    from ext_authz.datapath.services import Front, Wanted

NAME = "services.json"
_FORMAT = 1


class ServiceWriter:
    """Writes when there is a data path, and they are others than at the last time."""

    def __init__(self, state: State, node: str | None) -> None:
        self._path = state.datapath / NAME
        self._state = state
        self._node = node
        self._services: Sequence[Service] | None = None

    def write(self, services: Sequence[Service]) -> None:
        """
        Raises:
            OSError: It cannot be written.
        """
        if services == self._services or not self._state.has_datapath:
            return
        from ext_authz.datapath.services import wanted_rows  # not there without libbpf, and then no pins are

        rows = wanted_rows(services, self._node)
        write_atomic(
            self._path, json.dumps({"format": _FORMAT, "rows": [_row(*item) for item in rows.items()]}).encode()
        )
        self._services = services


def read_services(state: State) -> dict[Front, Wanted]:
    """
    What was written last; nothing if nothing was.

    Raises:
        OSError, ValueError, KeyError, TypeError: It cannot be read.
    """
    try:
        held = json.loads((state.datapath / NAME).read_bytes())
    except FileNotFoundError:
        return {}
    if held["format"] != _FORMAT:
        raise ValueError("services of another format")
    return dict(_unpack(*row) for row in held["rows"])


def _row(front: Front, wanted: Wanted) -> list[object]:
    places = [[place.address.hex(), place.port] for place in wanted.backends]
    return [front.address.hex(), front.port, front.protocol, wanted.affinity_s, wanted.owner, places]


def _unpack(
    address: str, port: int, protocol: int, affinity_s: int, owner: str, places: list[tuple[str, int]]
) -> tuple[Front, Wanted]:
    from ext_authz.datapath.services import Front, Place, Wanted

    backends = tuple(Place(bytes.fromhex(text), number) for text, number in places)
    return Front(bytes.fromhex(address), port, protocol), Wanted(backends, affinity_s, owner)
