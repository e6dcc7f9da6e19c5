# SPDX-License-Identifier: Apache-2.0
"""What of the loader needs no kernel: pins, addresses, the lock, privileges, and what is said without libbpf."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ext_authz.datapath.errors import Locked, MountError
from ext_authz.datapath.lock import Lock
from ext_authz.datapath.sets import Pins

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def pins(tmp_path: Path) -> Pins:
    made = Pins(tmp_path / "bpf")
    made.root.mkdir()
    made.prepare()
    return made


def test_the_live_set_is_the_one_that_was_made_live(pins: Pins) -> None:
    assert pins.live_set() is None
    first, second = pins.new_set(), pins.new_set()
    for chosen in (first, second, first):
        pins.stage(chosen)
        pins.go_on()
        assert pins.live_set() == chosen
        assert pins.live.resolve() == chosen.resolve()


def test_who_finds_a_set_that_was_to_follow_goes_on_to_it(pins: Pins) -> None:
    first, second = pins.new_set(), pins.new_set()
    pins.stage(first)
    pins.go_on()
    pins.stage(second)
    assert pins.live_set() == first
    pins.go_on()
    assert pins.live_set() == second
    pins.stage(first)
    first.rmdir()
    pins.go_on()  # what is gone follows nobody
    assert pins.live_set() == second


def test_sets_that_are_not_live_go(pins: Pins) -> None:
    first, second = pins.new_set(), pins.new_set()
    (first / "state").touch()
    pins.stage(second)
    pins.go_on()
    pins.drop_others(second)
    assert list(pins.sets.iterdir()) == [second]
    assert pins.new_set().name == "3"


def test_filters_are_remembered_with_whose_qdisc_it_is(pins: Pins) -> None:
    pins.add_filter(7, True)
    pins.add_filter(8, False)
    pins.add_filter(7, False)  # known already: what was found first counts
    assert pins.filters() == {7: True, 8: False}
    pins.remove_filter(7)
    assert pins.filters() == {8: False}


def test_clearing_leaves_nothing_of_ours(pins: Pins) -> None:
    pins.stage(pins.new_set())
    pins.go_on()
    pins.add_filter(7, True)
    (pins.root / "foreign").mkdir()
    pins.clear()
    assert [one.name for one in pins.root.iterdir()] == ["foreign"]


def test_a_lock_is_held_once_and_free_after_release(tmp_path: Path) -> None:
    held = Lock.take(tmp_path / "bpf")
    with pytest.raises(Locked, match=f"process {os.getpid()}"):
        Lock.take(tmp_path / "bpf")
    held.release()
    Lock.take(tmp_path / "bpf").release()


def test_whoever_is_dying_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was killed lets go some time later, and of one thing after the other."""
    held = Lock.take(tmp_path / "bpf")
    monkeypatch.setattr("ext_authz.datapath.lock.time.sleep", lambda _: held.release())
    Lock.take(tmp_path / "bpf").release()
    assert held.descriptor == -1


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "bpf.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MountError):
        Lock.take(tmp_path / "bpf")


@pytest.mark.needs_loader
@pytest.mark.parametrize(
    ("held", "lacking"),
    [("0000000000000000", "CAP_NET_ADMIN and CAP_SYS_ADMIN"), ("0000000000001000", "CAP_SYS_ADMIN")],
)
def test_missing_capabilities_are_named(tmp_path: Path, held: str, lacking: str) -> None:
    from ext_authz.datapath.errors import Unsupported
    from ext_authz.datapath.kernel import check_privileges

    status = tmp_path / "status"
    status.write_text(f"Name:\tx\nCapEff:\t{held}\n")
    with pytest.raises(Unsupported, match=f"needs {lacking}, which"):
        check_privileges(status)
    status.write_text("CapEff:\t0000000000201000\n")
    check_privileges(status)


@pytest.mark.needs_loader
@pytest.mark.parametrize("text", ["10.1.2.3", "::1", "fd00:1::1", "0.0.0.0", "::"])
def test_addresses_come_back_as_they_went(text: str) -> None:
    from ext_authz.datapath.addresses import packed, unpacked

    assert len(packed(text)) == 16
    assert unpacked(packed(text)) == text


def test_without_libbpf_the_build_says_so_and_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "native/ffi/datapath.py"],
        env={**os.environ, "CC": "false"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert "data path is left out: libbpf and its headers are missing" in done.stderr


def test_without_the_binding_the_package_says_what_is_missing() -> None:
    program = (
        "import sys; sys.modules['ext_authz.datapath._datapath'] = None\n"
        "from ext_authz.datapath import DatapathError\n"
        "import ext_authz.datapath.services\n"
        "try: from ext_authz.datapath import Datapath\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "the loader of the BPF data path is not built, or libbpf.so.1 is missing" in done.stdout, done.stderr
