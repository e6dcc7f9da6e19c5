# SPDX-License-Identifier: Apache-2.0
"""The small C programs of the tables, built when they are needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.load import machine

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_BPF = ("-g", "-O2", "-target", "bpf", "-mcpu=v3", "-std=gnu11")
_INCLUDE = tuple(f"-I{ROOT / path}" for path in ("bpf/include", "bpf/lib", "build/bpf", "native/include"))


def build(name: str, folder: Path) -> Path:
    """NAME.c as a program."""
    return _compile(["-std=gnu11", "-O2", str(HERE / f"{name}.c")], folder / name)


def build_bpf(name: str, folder: Path) -> Path:
    """NAME.bpf.c as an object for the kernel."""
    return _compile([*_BPF, *_INCLUDE, "-c", str(HERE / f"{name}.bpf.c")], folder / f"{name}.bpf.o")


def _compile(words: list[str], built: Path) -> Path:
    command = [machine.need("clang", "clang"), *words, "-o", str(built)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise machine.Missing(f"clang: {done.stderr.strip()}")
    return built
