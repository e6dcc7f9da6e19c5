# SPDX-License-Identifier: Apache-2.0
"""Programs that somebody took off: put back, and what cannot be put back is closed, not left open."""

from __future__ import annotations

import pytest

from ext_authz.agent.attachments import Attachment
from ext_authz.agent.datapath_lost import Lost
from ext_authz.datapath.results import Enforced

WEB = Attachment("default", "web", ("10.0.0.3",), 1, ifindex=7)
UNIT = Attachment("default", "unit", ("fd00::9",), 2, cgroup="/unit", cgroup_id=9)


class Host:
    """What is on its hooks, what can be put there, and what became of the interfaces."""

    def __init__(self) -> None:
        self.on, self.links = {7}, {"workload_egress-2", "keep_marks"}
        self.refuses = self.has_no_interface = False
        self.tried: list[str] = []
        self.up: dict[str, bool] = {}
        self.lost = Lost(self, self.names, self.attach, self.set_link, (RuntimeError, OSError))

    def enforced(self) -> Enforced:
        return Enforced(self.links, self.on)

    def names(self, attachment: Attachment) -> set[str]:
        return {"workload_egress-2"} if attachment.cgroup else set()

    def attach(self, attachment: Attachment) -> None:
        self.tried.append(attachment.name)
        if self.refuses:
            raise RuntimeError("no memory")

    def set_link(self, attachment: Attachment, up: bool) -> None:
        if self.has_no_interface:
            raise OSError("no such device")
        self.up[attachment.name] = up

    def look(self) -> list[str]:
        return self.lost.look([WEB, UNIT], {"keep_marks"})[0]


@pytest.fixture
def host() -> Host:
    return Host()


def test_what_is_on_its_hooks_is_left_alone(host: Host) -> None:
    assert host.lost.look([WEB, UNIT], {"keep_marks"}) == ([], set())
    assert host.tried == []


def test_what_was_taken_off_is_put_back(host: Host) -> None:
    host.on, host.links = set(), {"keep_marks"}
    assert host.look() == []
    assert host.tried == ["web", "unit"]
    assert host.up == {}


def test_an_interface_without_its_programs_is_set_down_until_they_are_back(host: Host) -> None:
    host.on, host.refuses = set(), True
    (said,) = host.look()
    assert "default/web" in said
    assert "no memory" in said
    assert "set down" in said
    assert host.up == {"web": False}
    host.refuses = False
    assert host.look() == []
    assert host.up == {"web": True}


def test_it_is_set_up_again_whoever_put_them_back(host: Host) -> None:
    host.on, host.refuses = set(), True
    assert host.look()
    host.on, host.refuses = {7}, False
    assert host.look() == []
    assert host.up == {"web": True}


def test_what_can_neither_be_judged_nor_closed_is_said_loudly(host: Host) -> None:
    host.on, host.links, host.refuses, host.has_no_interface = set(), {"keep_marks"}, True, True
    said = host.look()
    assert len(said) == 2
    assert all("NOT judged" in line for line in said)


def test_the_hosts_own_hooks_are_missed_too(host: Host) -> None:
    host.links = {"workload_egress-2"}
    assert host.lost.look([WEB, UNIT], {"keep_marks"}) == ([], {"keep_marks"})
