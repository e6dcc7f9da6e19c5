# SPDX-License-Identifier: Apache-2.0
"""The machine a figure belongs to, and what a benchmark needs of it."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from pathlib import Path
from types import ModuleType


class Missing(Exception):
    """A table cannot be measured on this machine; the text says what is missing."""


def need(program: str, package: str) -> str:
    """Path of a program, or Missing naming its Debian package."""
    found = shutil.which(program)
    if found is None:
        raise Missing(f"{program} is not installed (Debian package {package})")
    return found


def datapath(name: str) -> ModuleType:
    """A module that needs root, libbpf and the loader of the data path, or Missing; imported where it is measured."""
    if os.geteuid() != 0:
        raise Missing("root")
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise Missing(str(error)) from error


def describe() -> dict[str, str]:
    """What stands above each table."""
    return {
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def pin(core: int) -> None:
    """Keep this process on one core, so that rounds do not differ by migration."""
    os.sched_setaffinity(0, {core})


def cpu_seconds(task: Path) -> float:
    """CPU time a thread or process has used, from its schedstat, in seconds."""
    return int((task / "schedstat").read_text().split()[0]) / 1e9


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
