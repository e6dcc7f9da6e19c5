# SPDX-License-Identifier: Apache-2.0
"""Writes examples/*.json with the one generator of Envoy configuration. Run: python envoy/generate.py"""

from __future__ import annotations

from pathlib import Path

from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Direction, Door, Mode, Setup, Target

EXAMPLES = Path(__file__).resolve().parent / "examples"
STATE = Path("/run/idmesh")
MODULE = Path("/usr/lib/idmesh/libidmesh_envoy.so")
_LISTEN, _UPSTREAM = Target(host="0.0.0.0", port=8080), Target(host="10.0.0.10", port=8080)
_ADMIN = Target(host="127.0.0.1", port=9901)
_AUTHZ = (Target(path="/run/idmesh/authz.sock"),)


def examples(state: Path = STATE, module: Path = MODULE, admin: Target = _ADMIN) -> dict[str, Setup]:
    """Name and setup of each example; a test renders them with paths of its own and lets Envoy check them."""

    def setup(door: Door, mode: Mode = Mode.HTTP, direction: Direction = Direction.INGRESS, **more: bool) -> Setup:
        own = {"module": module, "state": state} if door == Door.MODULE else {"authz": _AUTHZ}
        return Setup(
            door=door,
            listen=_LISTEN,
            upstreams=(_UPSTREAM,),
            mode=mode,
            direction=direction,
            admin=admin,
            **own,
            **more,
        )

    return {
        "module-http": setup(Door.MODULE),
        "module-http-both-directions": setup(Door.MODULE, direction=Direction.BOTH),
        "module-http-second-point": setup(Door.MODULE, second_point=True),
        "module-tcp": setup(Door.MODULE, Mode.TCP),
        "ext-authz-http": setup(Door.EXT_AUTHZ),
        "ext-authz-tcp": setup(Door.EXT_AUTHZ, Mode.TCP),
    }


def main() -> None:
    """Replace all examples."""
    EXAMPLES.mkdir(exist_ok=True)
    for name, setup in examples().items():
        (EXAMPLES / f"{name}.json").write_text(render(setup))


if __name__ == "__main__":
    main()
