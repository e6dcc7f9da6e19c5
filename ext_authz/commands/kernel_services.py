# SPDX-License-Identifier: Apache-2.0
"""`idmesh datapath services`: Services' addresses and NodePorts, with the backends that the kernel gives for them."""

from __future__ import annotations

import json
import struct
from typing import Any

from ext_authz.cli import Failure
from ext_authz.commands.tables import print_rows
from ext_authz.datapath.addresses import unpacked
from ext_authz.datapath.pinned import PinnedMap
from ext_authz.datapath.service_table import unpack_backend, unpack_service
from ext_authz.datapath.services import NODE_PORTS, PROTOCOLS, Front, Wanted
from ext_authz.logs import escape
from ext_authz.state import State

_NAMES = {number: name for name, number in PROTOCOLS.items()}


def show_services(state: State, as_json: bool) -> int:
    """
    What stands in the maps, named after the Services as the node last knew them.

    Raises:
        Failure: The maps cannot be read.
    """
    from ext_authz.agent.datapath_services import read_services

    try:
        told = read_services(state)
    except (OSError, ValueError, KeyError, TypeError):
        told = {}
    try:
        found = _read(state, told)
    except OSError as error:
        raise Failure(escape(f"{state.datapath_pins}: {error.strerror}")) from None
    if as_json:
        for one in found:
            print(json.dumps(one))
        return 0
    rows = [("SERVICE", "ADDRESS", "AFFINITY", "BACKENDS")]
    rows += [_shown(one) for one in found]
    print_rows(rows)
    return 0


def _read(state: State, told: dict[Front, Wanted]) -> list[dict[str, Any]]:
    live = state.datapath_pins / "live"
    with PinnedMap(live / "services") as services, PinnedMap(live / "backends") as backends:
        found = [_record(Front.unpack(key), value, backends, told) for key, value in services.items()]
    return sorted(found, key=lambda one: (one["service"], one["address"], one["port"], one["protocol"]))


def _record(front: Front, value: bytes, backends: PinnedMap, told: dict[Front, Wanted]) -> dict[str, Any]:
    first, count, affinity_s, number = unpack_service(value)
    places = []
    for index in range(first, first + min(count, backends.rows_max)):
        row = backends.lookup(struct.pack("=I", index))
        place, owner = unpack_backend(row) if row is not None else (None, 0)
        if place is not None and owner == number:
            places.append({"address": unpacked(place.address), "port": place.port})
    return {
        "service": told[front].owner if front in told else "",
        "address": "" if front.address in NODE_PORTS else unpacked(front.address),
        "node_port": front.address in NODE_PORTS,
        "ip_version": 4 if front.address[:12] == NODE_PORTS[0][:12] else 6,
        "port": front.port,
        "protocol": _NAMES.get(front.protocol, str(front.protocol)),
        "affinity_s": affinity_s,
        "backends": places,
    }


def _shown(one: dict[str, Any]) -> tuple[str, str, str, str]:
    where = f"every IPv{one['ip_version']} address of the host" if one["node_port"] else one["address"]
    places = " ".join(_place(place["address"], place["port"]) for place in one["backends"])
    affinity = f"{one['affinity_s']} s" if one["affinity_s"] else ""
    return (
        escape(one["service"]) or "?",
        f"{_place(where, one['port'])}/{one['protocol']}",
        affinity,
        places or "none: refused",
    )


def _place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
