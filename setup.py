# SPDX-License-Identifier: Apache-2.0
"""
What pyproject.toml cannot say: the bindings are built by cffi, our messages by protoc, Envoy's module and the BPF
programs by make.

A wheel holds them all, so that installing it needs no compiler; what belongs to the data path is left out, and said
so, where libbpf or a kernel with BTF is missing. An editable install leaves module and programs to `make setup`.
"""

import runpy
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def strip(library: str | Path) -> None:
    """Of what only a debugger reads: it names the folders of the building machine."""
    subprocess.run(["strip", "--strip-debug", str(library)], check=True)


class BuildWhole(build_py):
    """Packages, with the module and the BPF programs in them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self._build_module()
            self._build_programs()

    def _build_module(self) -> None:
        objects = Path(self.get_finalized_command("build").build_temp).resolve() / "envoy"
        target = Path(self.build_lib).resolve() / "ext_authz/native"
        command = ["make", "-s", "-C", str(ROOT / "native/envoy"), f"OUT={target}", f"BUILD={objects}"]
        subprocess.run(command, check=True)
        strip(target / "libidmesh_envoy.so")

    def _build_programs(self) -> None:
        work = Path(self.get_finalized_command("build").build_temp).resolve() / "bpf"
        subprocess.run(["make", "-s", "-C", str(ROOT / "bpf"), "try", f"OUT={work}"], check=True)
        target = Path(self.build_lib).resolve() / "ext_authz/datapath/objects"
        target.mkdir(parents=True, exist_ok=True)
        for built in work.glob("*.bpf.o"):
            self.copy_file(str(built), str(target / built.name))


class BuildPortable(build_ext):
    """Without the search paths that the building Python was linked with: they belong to its machine."""

    def build_extensions(self) -> None:
        self.compiler.linker_so = [word for word in self.compiler.linker_so if "-rpath" not in word]
        super().build_extensions()
        if not self.editable_mode:
            for built in self.get_outputs():
                strip(built)


class Binary(Distribution):
    """The module ties the wheel to a platform even where the binding alone would not."""

    def has_ext_modules(self) -> bool:
        return True


# First of all: packages are looked for as soon as setup begins.
runpy.run_path(str(ROOT / "protos/build.py"))["generate"](ROOT)
bindings = ["native/ffi/build.py:ffibuilder"]
loader = runpy.run_path(str(ROOT / "native/ffi/datapath.py"))
if loader["has_libbpf"]():
    bindings.append("native/ffi/datapath.py:ffibuilder")
else:
    print(loader["MISSING"], file=sys.stderr)
setup(
    cffi_modules=bindings,
    cmdclass={"build_ext": BuildPortable, "build_py": BuildWhole},
    distclass=Binary,
    # The binding keeps to Python's stable ABI: one wheel serves every Python from this version on.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
