# SPDX-License-Identifier: Apache-2.0
"""Only what pyproject.toml cannot say: the engine's binding is built by cffi."""

from setuptools import setup

setup(cffi_modules=["native/ffi/build.py:ffibuilder"])
