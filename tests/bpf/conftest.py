# SPDX-License-Identifier: Apache-2.0
"""
Fixtures for tests of the BPF programs. Whoever is not root or has no BPF skips visibly; CI fails.

After every test its mounts, cgroups and names are gone, and after the session the root namespace is as it was.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bpf.net import Network, mounted_bpffs, own_cgroup, unmount
from tests.bpf.state import CGROUPS, PREFIX, Here, State, difference, machine_state, namespace_state
from tests.conftest import missing

if TYPE_CHECKING:
    from tests.bpf.packet_desk import Desk
    from tests.bpf.packet_place import Place

MARK = f"{PREFIX}{os.getpid()}-"


@functools.cache
def lacks_bpf() -> str:
    """What is missing for BPF on this machine, empty if nothing is."""
    if os.geteuid() != 0:
        return "not root"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "the kernel has no BTF"
    if not any(line.split()[-1] == "bpf" for line in Path("/proc/filesystems").read_text().splitlines()):
        return "the kernel has no bpffs"
    for tool in ("ip", "nsenter", "mount"):
        if shutil.which(tool) is None:
            return f"{tool} is missing"
    if not CGROUPS.joinpath("cgroup.procs").exists() and not Path("/sys/fs/cgroup/cgroup.procs").exists():
        return "no cgroup2 hierarchy is mounted"
    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError:
        return "libbpf is missing"
    return ""


@pytest.fixture(autouse=True, scope="session")
def _root_namespace_untouched() -> Iterator[None]:
    """Tests have namespaces of their own: this one is compared at the end."""
    if lacks_bpf():
        yield
        return
    before: State = namespace_state(Here())
    yield
    changed = difference(before, namespace_state(Here()))
    assert not changed, f"the root namespace was touched: {changed}"


@pytest.fixture(autouse=True)
def _machine_as_found() -> Iterator[None]:
    """Nothing with our mark outlives a test. Every test below needs BPF."""
    if reason := lacks_bpf():
        missing(reason)
    before = machine_state(MARK)
    yield
    left = difference(before, machine_state(MARK))
    assert not left, f"left behind: {left}"


@pytest.fixture
def net() -> Iterator[Network]:
    """A node namespace without ends; add them."""
    with Network() as made:
        yield made


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name carries our mark; whatever gets mounted below it is unmounted."""
    made = Path(tempfile.mkdtemp(prefix=MARK))
    try:
        yield made
    finally:
        unmount(made)
        shutil.rmtree(made)


@pytest.fixture
def bpffs(folder: Path) -> Path:
    """A mounted bpffs, mode 0700."""
    return mounted_bpffs(folder / "bpf")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of our own."""
    with own_cgroup(CGROUPS, f"{MARK}cgroup") as made:
        yield made


@pytest.fixture(scope="module")
def _desk() -> Iterator[Desk]:
    """The packet programs, loaded once a module."""
    if reason := lacks_bpf():
        missing(reason)
    from tests.bpf.packet_desk import Desk

    made = Path(tempfile.mkdtemp(prefix=MARK))
    try:
        desk = Desk(mounted_bpffs(made / "bpf"), ["a", "b", "c", "up"])
        try:
            yield desk
        finally:
            desk.close()
    finally:
        unmount(made)
        shutil.rmtree(made)


@pytest.fixture
def place(_desk: Desk) -> Place:
    """Workloads a, b and c and everybody else, nothing known of any connection."""
    from tests.bpf.packet_place import Place

    return Place(_desk)
