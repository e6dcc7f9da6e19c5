# SPDX-License-Identifier: Apache-2.0
"""Equal worlds give equal bytes, whatever seed Python hashes strings with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.load.generate import Scale, scale, write

_COMPILE = """
import hashlib, sys
from ext_authz.compiler.compile import compile_world
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import load
allocator = MemoryAllocator(domain=7)
print(hashlib.sha256(compile_world(load([sys.argv[1]]).world, allocator).snapshot).hexdigest())
"""


def test_a_snapshot_does_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    write(scale(Scale(policies=60, endpoints=300, identities=80)), tmp_path)
    digests = {
        subprocess.run(
            [sys.executable, "-c", _COMPILE, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(digests) == 1
