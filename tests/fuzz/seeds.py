# SPDX-License-Identifier: Apache-2.0
"""
Writes the seed snapshots of the fuzzers: small worlds that together use every section of the layout.

Run `python -m tests.fuzz.seeds` after a change of the layout; the files are committed.
"""

from __future__ import annotations

from pathlib import Path

from tests.native.builder import WORLDS, build

FOLDER = Path(__file__).parent / "corpus" / "snapshot"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in WORLDS:
        (FOLDER / f"{name}.snapshot").write_bytes(build(name))


if __name__ == "__main__":
    main()
