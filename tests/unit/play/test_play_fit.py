# SPDX-License-Identifier: Apache-2.0
"""Which probes fit which door, and what a client says first."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from ext_authz.casefile import read
from ext_authz.compiler.compile import Compiler
from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.play.client import client_hello
from ext_authz.play.doors import Flight, _flight, _Run
from ext_authz.play.prepare import Prepared, prepare
from ext_authz.play.results import PlayError
from ext_authz.play.stage import Wire, Wiring
from ext_authz.xds.setup import Direction, Door, Mode

CASES = {case.id: case for case in read(Path(__file__).parents[2] / "cases/policy.yaml").cases}
PLAIN = {"from": "client", "to": "server", "dir": "ingress", "port": 80, "protocol": "TCP"}
HTTP = {**PLAIN, "http": {"method": "GET", "path": "/", "host": "server"}}


def flight(probe: dict[str, Any], door: Door) -> Flight | str:
    prepared = prepare(CASES["DD-001"], Compiler(MemoryAllocator()))
    assert isinstance(prepared, Prepared)
    return _flight(probe, prepared, door)


@pytest.mark.parametrize("door", [Door.MODULE, Door.EXT_AUTHZ, Door.EXT_PROC])
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"protocol": "UDP"}, "not TCP"),
        ({"protocol": "SCTP"}, "not TCP"),
        ({"dns": {"qname": "a.test"}}, "dns"),
        ({"kafka": {}}, "kafka"),
        ({"http": HTTP["http"], "auth": "required"}, "authentication"),
        ({"http": HTTP["http"], "sni": "a", "outcome": "connection reset"}, "resets no connection"),
    ],
)
def test_what_does_not_fit_is_told_with_the_reason(door: Door, more: dict[str, Any], reason: str) -> None:
    found = flight({**PLAIN, **more}, door)
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize("door", [Door.MODULE, Door.EXT_AUTHZ])
@pytest.mark.parametrize(
    ("probe", "mode", "wire"),
    [
        (PLAIN, Mode.TCP, Wire.CLEAR),
        (HTTP, Mode.HTTP, Wire.CLEAR),
        ({**PLAIN, "sni": "a.test"}, Mode.TCP, Wire.PASSED),
        ({**PLAIN, "sni": ""}, Mode.TCP, Wire.PASSED),
        ({**HTTP, "sni": "a.test"}, Mode.HTTP, Wire.ENDED),
    ],
)
def test_connections_names_and_requests_fit_both_full_doors(
    door: Door, probe: dict[str, Any], mode: Mode, wire: Wire
) -> None:
    found = flight(probe, door)
    assert isinstance(found, Flight)
    assert (found.stage[0], found.stage[2]) == (mode, wire)


def test_ext_proc_plays_requests_only() -> None:
    assert isinstance(flight(HTTP, Door.EXT_PROC), Flight)
    assert "no requests" in str(flight(PLAIN, Door.EXT_PROC))
    assert "no requests" in str(flight({**PLAIN, "sni": "a.test"}, Door.EXT_PROC))


def test_a_client_hello_names_the_server_or_nobody() -> None:
    assert client_hello("www.example.test")[:2] == b"\x16\x03"
    assert b"www.example.test" in client_hello("www.example.test")
    assert client_hello("")[:2] == b"\x16\x03"


class _Stage:
    """Counts one verdict more than was played."""

    played = 2

    def counted(self) -> int:
        return 3

    def keep(self) -> None:
        """Nothing to leave."""


def test_a_door_that_counts_otherwise_than_was_played_is_an_error(tmp_path: Path) -> None:
    run = _Run(Wiring(Door.MODULE, EnvoyBinary(tmp_path, (1, 40, 0)), tmp_path, tmp_path), contextlib.ExitStack())
    run._stages[Mode.TCP, Direction.INGRESS, Wire.CLEAR] = _Stage()  # type: ignore[assignment]
    with pytest.raises(PlayError, match="counted 3 verdicts, 2 flows"):
        run._check_counts()
