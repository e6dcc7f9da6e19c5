# SPDX-License-Identifier: Apache-2.0
"""What keeps the data path from loading is said in words, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.datapath import Datapath, Locked, MountError, ObjectError, Refused, Unsupported, kernel
from ext_authz.datapath.mount import kind_of
from tests.bpf.loader_objects import LICENSE, build

SIZES = {"endpoints": 64, "prefixes": 64, "sides": 16, "peers": 64, "spans": 64, "connections": 64}
# What a verifier must refuse: it reads what may not be there.
UNSAFE = 'SEC("tc") int unsafe(struct __sk_buff *skb) { return *(int *)(long)skb->data; }'
# So that the struct is in the object's type information.
USES = 'SEC("tc") int uses(struct __sk_buff *skb) { return sizeof(struct idm_endpoint_row); }'


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("objects"))


@pytest.fixture
def root(folder: Path) -> Iterator[Path]:
    """Where a data path could be; at the end nothing is there."""
    yield folder / "bpf"
    assert kind_of(folder / "bpf") is None
    assert not (folder / "bpf").exists()


def test_a_process_without_privileges_is_told_which(root: Path, objects: Path) -> None:
    """As root without capabilities, which is what containers are."""
    program = (
        "import sys; from pathlib import Path; from ext_authz.datapath import Datapath, Unsupported\n"
        "try: Datapath.open(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except Unsupported as error: print(error)"
    )
    command = ["setpriv", "--bounding-set=-sys_admin,-net_admin", "--inh-caps=-all", sys.executable, "-c", program]
    done = subprocess.run([*command, root, objects], capture_output=True, text=True, check=False)
    assert done.stdout == (
        "the BPF data path needs CAP_NET_ADMIN and CAP_SYS_ADMIN, which this process (root) lacks\n"
    ), done.stderr


def test_a_kernel_without_btf_is_named(root: Path, objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel.check_btf, "__defaults__", (Path("/nonexistent/vmlinux"),))
    with pytest.raises(Unsupported, match=r"CONFIG_DEBUG_INFO_BTF"):
        Datapath.open(root, objects)


def test_a_missing_feature_is_named_with_what_needs_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, objects: Path
) -> None:
    for kind, number, words in (("map", 27, r"maps of type RINGBUF \(events\)"), ("program", 3, r"sched_cls \(tc\)")):
        monkeypatch.setattr(kernel, "has", lambda *asked, lacking=(kind, number): asked != lacking)
        with pytest.raises(Unsupported, match=f"this kernel has no .*{words}"):
            Datapath.open(root, objects)


def test_the_kernel_is_asked_what_it_has() -> None:
    assert kernel.has("program", 3)
    assert kernel.has("map", 27)
    assert not kernel.has("program", 4000)
    assert not kernel.has("map", 4000)


def test_a_struct_that_lies_otherwise_is_refused_though_the_number_is_ours(root: Path, tmp_path: Path) -> None:
    change = ("uint32_t ifindex;  /* host side of its veth", "uint64_t ifindex;  /* host side of its veth")
    with pytest.raises(ObjectError, match="struct idm_endpoint_row lies otherwise"):
        Datapath.open(root, build(tmp_path / "other", header=change, more=USES))


def test_another_layout_is_refused_before_loading(root: Path, tmp_path: Path) -> None:
    made = build(tmp_path / "other", header=("#define IDM_LAYOUT 1 ", "#define IDM_LAYOUT 77 "))
    with pytest.raises(ObjectError, match="layout 77, this loader has layout"):
        Datapath.open(root, made)


def test_a_license_that_gets_no_helpers_is_refused_before_loading(root: Path, tmp_path: Path) -> None:
    line = LICENSE.replace("Dual BSD/GPL", "Proprietary")
    with pytest.raises(ObjectError, match="license 'Proprietary'"):
        Datapath.open(root, build(tmp_path / "license", license_line=line))


def test_an_object_without_type_information_is_refused(root: Path, objects: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.bpf.o"
    subprocess.run(["llvm-objcopy", "--remove-section=.BTF", objects / "small.bpf.o", bare], check=True)
    with pytest.raises(ObjectError, match=r"section \.BTF is missing: it was built without -g"):
        Datapath.open(root, tmp_path)


def test_a_damaged_file_is_no_object(root: Path, tmp_path: Path) -> None:
    (tmp_path / "text.bpf.o").write_text("no program at all")
    with pytest.raises(ObjectError, match="not an ELF file"):
        Datapath.open(root, tmp_path)


def test_an_empty_folder_says_how_to_build(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ObjectError, match="no BPF objects"):
        Datapath.open(root, tmp_path)


def test_what_the_verifier_says_is_shown(root: Path, tmp_path: Path) -> None:
    made = build(tmp_path / "unsafe", more=UNSAFE)
    with pytest.raises(Refused, match="verifier refuses") as short:
        Datapath.open(root, made)
    assert "invalid access to packet" in str(short.value)
    assert "--verbose" in str(short.value)
    with pytest.raises(Refused) as whole:
        Datapath.open(root, made, verbose=True)
    assert "invalid access to packet" in whole.value.log


def test_the_log_of_good_programs_is_there_when_asked_for(folder: Path, objects: Path) -> None:
    with Datapath.open(folder / "bpf", objects, SIZES, verbose=True) as datapath:
        assert "processed" in datapath.log
        datapath.cleanup()


@pytest.mark.parametrize("mode", ["1777", "0750", "0701"])
def test_a_bpffs_that_others_can_enter_is_refused(folder: Path, objects: Path, mode: str) -> None:
    target = folder / "bpf"
    target.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "bpf", "-o", f"mode={mode}", "bpf", target], check=True)
    with pytest.raises(MountError, match="must be 0700"):
        Datapath.open(target, objects)
    assert kind_of(target) == "bpf"  # not ours to unmount


def test_a_bpffs_of_another_user_is_refused(folder: Path, objects: Path) -> None:
    target = folder / "bpf"
    target.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=0700", "bpf", target], check=True)
    os.chown(target, 65534, 65534)
    with pytest.raises(MountError, match="belongs to user 65534"):
        Datapath.open(target, objects)


def test_another_file_system_is_refused(folder: Path, objects: Path) -> None:
    target = folder / "bpf"
    target.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "none", target], check=True)
    with pytest.raises(MountError, match="no bpffs is mounted there, but tmpfs"):
        Datapath.open(target, objects)


def test_a_mount_put_over_ours_is_seen(folder: Path, objects: Path) -> None:
    target = folder / "bpf"
    datapath = Datapath.open(target, objects, SIZES)
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=0700", "bpf", target], check=True)
    with pytest.raises(MountError, match="another file system"):
        datapath.attach(1)
    subprocess.run(["umount", target], check=True)
    datapath.cleanup()


def test_a_second_agent_is_told_of_the_first(folder: Path, objects: Path) -> None:
    target = folder / "bpf"
    with Datapath.open(target, objects, SIZES) as first:
        with pytest.raises(Locked, match=f"another agent drives this data path .process {os.getpid()}."):
            Datapath.open(target, objects, SIZES)
        assert first.state().generation == 0
    with Datapath.open(target, objects, SIZES) as again:
        again.cleanup()
