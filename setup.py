# SPDX-License-Identifier: Apache-2.0
"""Only what pyproject.toml cannot say: the engine's binding is built by cffi, our messages by protoc."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithMessages(build_py):
    """Generated code stands in the tree before packages are collected."""

    def run(self) -> None:
        runpy.run_path(str(ROOT / "protos/build.py"))["generate"](ROOT)
        super().run()


setup(cffi_modules=["native/ffi/build.py:ffibuilder"], cmdclass={"build_py": BuildWithMessages})
