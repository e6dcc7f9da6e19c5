# SPDX-License-Identifier: Apache-2.0
"""
Objects made for the loader's tests: all maps, and programs small enough to say one thing.

What the loader does must not depend on what the programs do, and each mistake needs an object that has it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNSPEC, DROP = -1, 2

PLAIN = """
#include "maps.h"
{license}
SEC("tc") int from_workload(struct __sk_buff *skb) {{ return {answer}; }}
SEC("tc") int to_workload(struct __sk_buff *skb) {{ return {answer}; }}
{more}
"""
LICENSE = 'char LICENSE[] SEC("license") = "Dual BSD/GPL";'
# Says which generation and revision it finds, by one reading of the word.
WORD = """
SEC("tc") int look(struct __sk_buff *skb)
{
	struct idm_state *row = bpf_map_lookup_elem(&state, &(uint32_t){0});

	return row ? row->generation : -1;
}
"""


def build(
    folder: Path, *, answer: int = DROP, license_line: str = LICENSE, more: str = "", header: tuple[str, str] = ("", "")
) -> Path:
    """
    One object in a folder of its own.

    Args:
        answer: What both programs return.
        more: C that follows them.
        header: What to write otherwise in datapath.h.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "small.bpf.c"
    source.write_text(PLAIN.format(license=license_line, answer=answer, more=more))
    subprocess.run(["make", "-s", "-C", str(ROOT / "bpf"), str(Path("../build/bpf/vmlinux.h"))], check=True)
    (folder / "idmesh").mkdir(exist_ok=True)
    text = (ROOT / "bpf/include/idmesh/datapath.h").read_text()
    assert header[0] in text
    (folder / "idmesh/datapath.h").write_text(text.replace(*header) if header[0] else text)
    includes = [f"-I{folder}"] + [
        f"-I{ROOT / part}" for part in ("bpf/include", "bpf/lib", "build/bpf", "native/include")
    ]
    base = ["clang", "-g", "-O2", "-target", "bpf", "-mcpu=v3", "-std=gnu11", *includes]
    subprocess.run([*base, "-c", str(source), "-o", str(folder / "small.bpf.o")], check=True)
    return folder
