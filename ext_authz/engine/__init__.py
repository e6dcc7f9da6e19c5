# SPDX-License-Identifier: Apache-2.0
"""The engine's Python door: `Engine.open(...)`, `.decide(Flow(...))`. Importing layout alone stays cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ext_authz.engine.engine import Engine as Engine
    from ext_authz.engine.types import Explanation as Explanation
    from ext_authz.engine.types import Flow as Flow
    from ext_authz.engine.types import Http as Http
    from ext_authz.engine.types import Kafka as Kafka
    from ext_authz.engine.types import SnapshotError as SnapshotError
    from ext_authz.engine.types import Verdict as Verdict

__all__ = ["Engine", "Explanation", "Flow", "Http", "Kafka", "SnapshotError", "Verdict"]


def __getattr__(name: str) -> Any:
    # Late, so that building the binding and reading layouts do not need each other.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ext_authz.engine import engine, types

    return engine.Engine if name == "Engine" else getattr(types, name)
