# SPDX-License-Identifier: Apache-2.0
"""
Builds ext_authz.datapath._datapath, the binding to the loader of the BPF data path.

An extension of its own: only it needs libbpf, and a machine without libbpf still gets everything else. Debian's
libbpf.a is not built for shared objects, so libbpf.so.1 is linked and must be there where the loader runs.

As a script it builds in place; setup.py names `native/ffi/datapath.py:ffibuilder` where libbpf is.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cffi import FFI

MODULE = "ext_authz.datapath._datapath"
HEADERS = (
    "native/include/idmesh/snapshot.h",
    "native/include/idmesh/engine.h",
    "bpf/include/idmesh/datapath.h",
    "native/include/idmesh/datapath_loader.h",
)
SOURCE_DIRS = ("native/engine", "native/datapath")
INCLUDE_DIRS = ("native/include", "bpf/include", "native")
MISSING = "the BPF data path is left out: libbpf and its headers are missing (Debian: apt-get install libbpf-dev)"
ROOT = Path(globals().get("__file__", "native/ffi/datapath.py")).resolve().parent.parent.parent

_PROBE = "#include <bpf/libbpf.h>\nint main(void) { return libbpf_major_version() < 1; }\n"
_engine: dict[str, Any] = runpy.run_path(str(ROOT / "native/ffi/build.py"), run_name="engine_build")


def has_libbpf() -> bool:
    """True if a program that uses libbpf 1.x compiles and links."""
    compiler = os.environ.get("CC", "cc").split()
    with tempfile.TemporaryDirectory(prefix="idmesh-build-") as work:
        command = [*compiler, "-x", "c", "-", "-o", f"{work}/probe", "-lbpf"]
        try:
            return subprocess.run(command, input=_PROBE.encode(), capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def sources(root: Path = ROOT) -> list[Path]:
    """Every C file that the binding is made of."""
    return sorted(path for folder in SOURCE_DIRS for path in (root / folder).glob("*.c"))


def make_builder(base: Path, root: Path = ROOT) -> FFI:
    """The cffi builder; paths are written relative to base, or absolute if it is "/"."""

    def shown(path: Path) -> str:
        return str(path) if base == Path("/") else os.path.relpath(path, base)

    builder = FFI()
    builder.cdef("".join(_engine["cdef_of"]((root / name).read_text(encoding="utf-8")) for name in HEADERS))
    builder.set_source(
        MODULE,
        "".join(f'#include "idmesh/{Path(name).name}"\n' for name in HEADERS),
        sources=[shown(path) for path in sources(root)],
        include_dirs=[shown(root / folder) for folder in INCLUDE_DIRS],
        extra_compile_args=list(_engine["C_FLAGS"]),
        libraries=["bpf", "pthread"],
    )
    return builder


def build_in_place(root: Path = ROOT, force: bool = False) -> Path:
    """Build next to the Python code."""
    inputs = [Path(__file__), root / "native/ffi/build.py", *(root / name for name in HEADERS), *sources(root)]
    inputs += [path for folder in SOURCE_DIRS for path in (root / folder).glob("*.h")]
    made: Path = _engine["put_in_place"](
        root / "ext_authz/datapath", inputs, lambda: make_builder(Path("/"), root), force
    )
    return made


def main(arguments: list[str]) -> int:
    if not has_libbpf():
        print(MISSING, file=sys.stderr)
        return 0
    print(build_in_place(force="--force" in arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
elif has_libbpf():
    ffibuilder = make_builder(ROOT)
