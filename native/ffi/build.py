# SPDX-License-Identifier: Apache-2.0
"""
Builds ext_authz.engine._engine, the binding to the C engine (cffi, API mode).

The cdef is the public headers themselves with comments and preprocessor lines taken out, so there is one
definition of every struct. Extra declarations stand in native/ffi/*.cdef.h, which are headers like the others:
they may include what they need and are compiled too.

As a script it builds in place; setup.py names `native/ffi/build.py:ffibuilder`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from cffi import FFI

MODULE = "ext_authz.engine._engine"
# snapshot.h first: the others include it.
HEADERS = ("snapshot.h", "matcher.h", "engine.h", "peer.h", "flow.h", "counts.h", "check.h", "process.h", "events.h")
SOURCE_DIRS = ("native/engine", "native/automata", "native/flow", "native/service", "native/events")
C_FLAGS = ("-std=gnu11", "-O3", "-fvisibility=hidden", "-fno-semantic-interposition", "-Wall", "-Wextra")
ROOT = Path(globals().get("__file__", "native/ffi/build.py")).resolve().parent.parent.parent

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_CONSTANT = re.compile(r"#\s*define\s+([A-Z]\w*)\s+(-?(?:0x[0-9a-fA-F]+|\d+)[uUlL]*)\s*$")


def cdef_of(text: str) -> str:
    """Declarations of a header as cffi reads them; of the preprocessor only integer constants are left."""
    lines = []
    for line in _COMMENT.sub("", text).splitlines():
        constant = _CONSTANT.match(line)
        if constant:
            lines.append(f"#define {constant[1]} {constant[2]}")
        elif line.strip() and not line.lstrip().startswith("#"):
            lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


def sources(root: Path = ROOT) -> list[Path]:
    """Every C file that the binding is made of."""
    return sorted(path for folder in SOURCE_DIRS for path in (root / folder).glob("*.c"))


def headers(root: Path = ROOT) -> list[Path]:
    """Headers the binding shows, in the order in which they build on each other."""
    public = [root / "native/include/idmesh" / name for name in HEADERS]
    return public + sorted((root / "native/ffi").glob("*.cdef.h"))


def make_builder(base: Path, root: Path = ROOT) -> FFI:
    """
    The cffi builder.

    Args:
        base: Paths are written relative to this folder (setuptools wants them so), or absolute if it is "/".
    """

    def shown(path: Path) -> str:
        return str(path) if base == Path("/") else os.path.relpath(path, base)

    builder = FFI()
    cdef = "".join(cdef_of(path.read_text(encoding="utf-8")) for path in headers(root))
    builder.cdef(cdef)
    includes = [f"idmesh/{name}" for name in HEADERS] + [path.name for path in headers(root)[len(HEADERS) :]]
    builder.set_source(
        MODULE,
        "".join(f'#include "{name}"\n' for name in includes),
        sources=[shown(path) for path in sources(root)],
        include_dirs=[shown(root / folder) for folder in ("native/include", "native/ffi", "bpf/include", *SOURCE_DIRS)],
        extra_compile_args=list(C_FLAGS),
        libraries=["pthread"],
    )
    return builder


def put_in_place(folder: Path, inputs: Iterable[Path], make: Callable[[], FFI], force: bool = False) -> Path:
    """
    Build a binding into a folder, aside and renamed, so that a running process never sees half a file.

    Args:
        inputs: What it is made of; one that is newer than all of these is left as it is.
        make: Gives the builder.
        force: Build even then.
    """
    present = sorted(folder.glob("_*.so"))
    # Of two builds Python would take the one with the more specific name, which may be the older.
    if len(present) == 1 and not force:
        built_at = present[0].stat().st_mtime
        if all(path.stat().st_mtime < built_at for path in inputs):
            return present[0]
    with tempfile.TemporaryDirectory(prefix="idmesh-build-") as work:
        built = Path(make().compile(tmpdir=work))
        staged = folder / f".{built.name}.{os.getpid()}"
        shutil.copy2(built, staged)
        os.replace(staged, folder / built.name)
    for path in present:
        if path.name != built.name:
            path.unlink(missing_ok=True)
    return folder / built.name


def build_in_place(root: Path = ROOT, force: bool = False) -> Path:
    """Build next to the Python code."""
    inputs = [Path(__file__), *headers(root), *sources(root), root / "bpf/include/idmesh/datapath.h"]
    inputs += [path for folder in SOURCE_DIRS for path in (root / folder).glob("*.h")]
    return put_in_place(root / "ext_authz/engine", inputs, lambda: make_builder(Path("/"), root), force)


def main(arguments: list[str]) -> int:
    print(build_in_place(force="--force" in arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
else:
    ffibuilder = make_builder(ROOT)
