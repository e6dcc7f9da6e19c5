# SPDX-License-Identifier: Apache-2.0
"""The engine's binding: that it is built, and from the layout Python packs."""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.doctor.registry import Finding, Patient, check, fail, ok


@check("engine")
def engine(_patient: Patient) -> Iterator[Finding]:
    try:
        from ext_authz.engine import layout
    except ImportError as error:
        yield fail(f"the engine cannot be loaded: {error}", "run make setup")
        return
    yield ok(f"engine loaded, snapshot format {layout.FORMAT}")
