# SPDX-License-Identifier: Apache-2.0
"""Laws of places: whom the kernel refuses keeps nobody else from his addresses, and gets his own the next time."""

from __future__ import annotations

from typing import Any

import pytest
from sourcing import ADDRESSES, pods

from ext_authz.agent.attachments import Attachment
from ext_authz.agent.datapath_places import Places
from ext_authz.compiler.compile import Compiler
from ext_authz.datapath import DatapathError
from ext_authz.engine import Engine
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import load_text


class Kernel:
    """Does what it is told, and says of one interface that it could not."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[str, ...]] = {}
        self.refused = 0

    def place(self, ifindex: int, addresses: tuple[str, ...], mac: str | None, *, peer_ifindex: int) -> None:
        self.held[ifindex] = addresses
        if ifindex == self.refused:
            raise DatapathError("half-way")


class Store:
    boot = ""

    def all(self) -> list[Attachment]:
        return [
            Attachment("default", name, (ADDRESSES[name],), number, ifindex=number, boot=self.boot)
            for number, name in NUMBERS.items()
        ]


NUMBERS = {1: "client", 2: "web", 3: "db"}
EVERYBODY = {number: (ADDRESSES[name],) for number, name in NUMBERS.items()}


def engine(*names: str, prefix: str = "") -> Engine:
    """Of these Pods, or all; prefix: others have their addresses."""
    text = pods(*names).replace("name: ", f"name: {prefix}")
    return Engine.open(Compiler(MemoryAllocator(1)).compile(load_text(text, "pods.yaml").world).snapshot)


def test_whom_the_kernel_refuses_gets_his_address_the_next_time() -> None:
    kernel: Any = Kernel()
    store: Any = Store()
    places = Places(kernel, store)
    places.take_away(engine(prefix="next-"))
    assert set(kernel.held.values()) == {()}
    kernel.refused = 1
    with pytest.raises(DatapathError, match="default/client: half-way"):
        places.give_back(engine())
    assert kernel.held == EVERYBODY
    kernel.held[1], kernel.refused = (), 0
    places.give_back(engine())
    assert kernel.held == EVERYBODY


def test_who_loses_his_address_half_way_has_it_again_by_the_revision_that_stays() -> None:
    kernel: Any = Kernel()
    store: Any = Store()
    places = Places(kernel, store)
    kernel.refused = 1
    with pytest.raises(DatapathError):
        places.take_away(engine(prefix="next-"))
    assert set(kernel.held.values()) == {()}
    kernel.refused = 0
    places.give_back(engine())
    assert kernel.held == EVERYBODY


def test_by_another_start_of_the_host_nobody_is_anywhere() -> None:
    kernel: Any = Kernel()
    store: Any = Store()
    store.boot = "another"
    places = Places(kernel, store)
    places.take_away(engine(prefix="next-"))
    places.give_back(engine())
    assert kernel.held == {}


def test_what_becomes_nobodys_stays_where_it_is() -> None:
    """A policy that comes with it need not wait for a grace period each."""
    kernel: Any = Kernel()
    store: Any = Store()
    places = Places(kernel, store)
    for revision in (engine("client"), engine()):
        places.take_away(revision)
        places.give_back(revision)
        assert kernel.held == {}
