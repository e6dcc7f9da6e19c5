# SPDX-License-Identifier: Apache-2.0
"""
The BPF data path of this host: `Datapath.open(root)`, `.publish(snapshot)`, `.attach(ifindex, addresses)`.

`Datapath` needs the loader's binding, which is built where libbpf is; the rest of the package can do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ext_authz.datapath.errors import (
    DatapathError,
    Locked,
    MapFull,
    MountError,
    ObjectError,
    Refused,
    Unsupported,
)
from ext_authz.datapath.results import Counter, LiveState, MapInfo, Report, Run

if TYPE_CHECKING:
    from ext_authz.datapath.loader import Datapath as Datapath

__all__ = [
    "Counter",
    "Datapath",
    "DatapathError",
    "LiveState",
    "Locked",
    "MapFull",
    "MapInfo",
    "MountError",
    "ObjectError",
    "Refused",
    "Report",
    "Run",
    "Unsupported",
]


def __getattr__(name: str) -> Any:
    # Late: whoever compiles services into rows needs no loader.
    if name != "Datapath":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ext_authz.datapath.loader import Datapath
    except ImportError as error:
        raise ImportError(
            f"the loader of the BPF data path is not built, or libbpf.so.1 is missing (Debian: libbpf1): {error}"
        ) from None
    return Datapath
