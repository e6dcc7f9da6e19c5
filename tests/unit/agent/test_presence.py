# SPDX-License-Identifier: Apache-2.0
"""Who is gone is known at once, and who is not costs next to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ext_authz.agent.attachments import Attachment
from ext_authz.agent.presence import Presence

VETH = Attachment("default", "web", ("10.0.0.3",), 1, ifindex=7, peer_ifindex=2)


class Kernel:
    """What it has told of interfaces, and how often it was asked of one."""

    def __init__(self) -> None:
        self.changed: set[int] | None = set()
        self.asked = 0
        self.reason = ""

    def since(self) -> set[int] | None:
        return self.changed

    def gone(self, attachment: Attachment) -> str:
        self.asked += 1
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
