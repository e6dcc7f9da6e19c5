# SPDX-License-Identifier: Apache-2.0
"""Who is gone is known at once, and who is not costs next to nothing."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ext_authz.agent.attachments import Attachment
from ext_authz.agent.netlink import LinkChanges
from ext_authz.agent.presence import Presence
from ext_authz.boot import boot_id

VETH = Attachment("default", "web", ("10.0.0.3",), 1, ifindex=7, peer_ifindex=2)


class Kernel:
    """What it has told of interfaces, and how often it was asked of one."""

    def __init__(self) -> None:
        self.changed: set[int] | None = set()
        self.asked = 0
        self.reason = ""
        self.failing = False

    def since(self) -> set[int] | None:
        return self.changed

    def gone(self, attachment: Attachment) -> str:
        self.asked += 1
        if self.failing:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.reason


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr("ext_authz.agent.presence.LinkChanges", lambda: made)
    monkeypatch.setattr("ext_authz.agent.presence.gone", made.gone)
    return made


def test_an_interface_is_asked_for_once_and_then_when_it_has_changed(kernel: Kernel) -> None:
    presence = Presence()
    for _ in range(3):
        assert presence.gone([VETH]) == {}
    assert kernel.asked == 1
    kernel.changed, kernel.reason = {8}, "interface 7 is gone"
    assert presence.gone([VETH]) == {}
    kernel.changed = {7}
    assert presence.gone([VETH]) == {"default/web": "interface 7 is gone"}
    kernel.changed = set()
    assert presence.gone([VETH]) == {"default/web": "interface 7 is gone"}
    assert kernel.asked == 2


def test_more_changes_than_the_kernel_keeps_mean_that_any_may_be_gone(kernel: Kernel) -> None:
    presence = Presence()
    presence.gone([VETH])
    kernel.changed, kernel.reason = None, "interface 7 is gone"
    assert presence.gone([VETH]) == {"default/web": "interface 7 is gone"}


def test_an_endpoint_attached_elsewhere_is_asked_for_anew(kernel: Kernel) -> None:
    presence = Presence()
    presence.gone([VETH])
    presence.gone([Attachment("default", "web", ("10.0.0.3",), 1, ifindex=9, peer_ifindex=2)])
    assert kernel.asked == 2


def test_a_cgroup_is_known_by_its_number(kernel: Kernel, tmp_path: Path) -> None:
    found = Attachment("default", "unit", ("10.0.0.3",), 1, cgroup=str(tmp_path), cgroup_id=tmp_path.stat().st_ino)
    assert Presence().gone([found]) == {}
    assert kernel.asked == 0
    kernel.reason = "the cgroup is another one now"
    other = Attachment("default", "unit", ("10.0.0.3",), 1, cgroup=str(tmp_path), cgroup_id=1)
    assert Presence().gone([other]) == {"default/unit": "the cgroup is another one now"}


def test_a_cgroup_of_an_earlier_start_of_the_host_is_asked_for(kernel: Kernel, tmp_path: Path) -> None:
    """Numbers begin anew with the host: the same number at the same path may be another workload's."""
    kernel.reason = "the host was started anew since"
    number = tmp_path.stat().st_ino
    found = Attachment("default", "unit", ("10.0.0.3",), 1, cgroup=str(tmp_path), cgroup_id=number, boot="earlier")
    assert Presence().gone([found]) == {"default/unit": "the host was started anew since"}
    assert Presence().gone([replace(found, boot=boot_id())]) == {}


def test_nobody_is_gone_while_the_kernel_does_not_answer(kernel: Kernel) -> None:
    presence = Presence()
    assert presence.gone([VETH]) == {}
    kernel.changed, kernel.failing = {7}, True
    assert presence.gone([VETH]) == {}
    kernel.changed, kernel.failing, kernel.reason = set(), False, "interface 7 is gone"
    assert presence.gone([VETH]) == {"default/web": "interface 7 is gone"}


def test_where_the_kernel_does_not_tell_of_interfaces_each_is_asked_for(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox may permit no such socket."""

    def refused() -> LinkChanges:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr("ext_authz.agent.presence.LinkChanges", refused)
    presence = Presence()
    assert presence.gone([]) == {}
    for _ in range(2):
        assert presence.gone([VETH]) == {}
    assert kernel.asked == 2


def test_a_socket_that_fails_for_good_does_not_hold_the_node_up() -> None:
    changes: Any = LinkChanges()
    assert changes.since() == set()
    changes.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        changes.since()
