# SPDX-License-Identifier: Apache-2.0
"""Python and its packages, and the parts of grpcio that the service reaches below its public interface."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib import metadata

from ext_authz.doctor.registry import Finding, Patient, check, fail, ok, warn

_NEWEST = (3, 13)
# Import name to the distribution that has it.
_NEEDED = {
    "cffi": "cffi",
    "envoy_data_plane": "envoy-data-plane",
    "re2": "google-re2",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "google.protobuf": "protobuf",
    "elftools": "pyelftools",
    "yaml": "PyYAML",
    "envoy.service.auth.v3": "xds-protos",
}


@check("python")
def python(_patient: Patient) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] > _NEWEST:
        yield warn(f"Python {version}, newer than what was tested", "run make check with it")
    else:
        yield ok(f"Python {version}")


@check("packages")
def packages(_patient: Patient) -> Iterator[Finding]:
    for module, distribution in _NEEDED.items():
        try:
            importlib.import_module(module)
            yield ok(f"{distribution} {metadata.version(distribution)}")
        except (ImportError, metadata.PackageNotFoundError) as error:
            yield fail(f"{distribution}: {error}", f"pip install {distribution}")


@check("grpc core")
def grpc_core(_patient: Patient) -> Iterator[Finding]:
    from ext_authz.service.loop import check_core

    missing = check_core()
    if missing:
        yield fail(f"grpcio lacks {', '.join(missing)}", "install the grpcio version that constraints.txt names")
    else:
        yield ok("grpcio has what the service uses of its core")
