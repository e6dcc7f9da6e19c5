# SPDX-License-Identifier: Apache-2.0
"""Services as the model has them, in the kernel's maps: taken up again, listed, and changed under real connections."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ext_authz.commands.kernel_services import show_services
from ext_authz.datapath import Datapath, MapFull
from ext_authz.datapath.service_table import ServiceTable, pack_service
from ext_authz.datapath.services import wanted_rows
from ext_authz.model.types import Service, ServicePort, ServiceTarget
from ext_authz.state import State
from tests.bpf.bare import CGROUP, OBJECTS, run_in
from tests.bpf.net import End, Network

VIP, OTHER_VIP, SIZE = "10.96.0.1", "10.96.0.2", 64
HOOKS = [hook for hook in CGROUP if hook.startswith(("connect", "getpeername"))]


@pytest.fixture
def state(folder: Path) -> State:
    made = State(folder)
    made.datapath.mkdir(parents=True)
    return made


@pytest.fixture
def kernel(state: State, folder: Path, net: Network) -> Iterator[Datapath]:
    objects = folder / "objects"
    objects.mkdir()
    (objects / "connect.bpf.o").symlink_to(OBJECTS / "connect.bpf.o")
    with net.node.inside():
        made = Datapath.open(state.datapath_pins, objects, {"backends": SIZE})
        try:
            yield made
        finally:
            made.cleanup()


def table(kernel: Datapath) -> ServiceTable:
    return ServiceTable(kernel, SIZE, kernel.grace)


def service(name: str, address: str, *targets: tuple[str, int], node_port: int = 0, protocol: str = "TCP") -> Service:
    behind = tuple(ServiceTarget("web", text, port, protocol) for text, port in targets)
    return Service("shop", name, {}, None, (), (address,), (ServicePort("web", 80, protocol, node_port),), behind)


def test_a_later_process_takes_up_what_stands(kernel: Datapath) -> None:
    wanted = wanted_rows([service("a", VIP, ("10.1.0.1", 1), ("10.1.0.2", 2)), service("b", OTHER_VIP)])
    assert table(kernel).apply(wanted) == 2
    again = table(kernel)
    assert again.apply(wanted) == 0
    assert again.apply({}) == 2
    assert list(kernel.read("services")) == []


def test_services_that_do_not_fit_change_nothing(kernel: Datapath) -> None:
    held = table(kernel)
    held.apply(wanted_rows([service("a", VIP, ("10.1.0.1", 1))]))
    before = list(kernel.read("services"))
    with pytest.raises(MapFull):
        held.apply(wanted_rows([service("a", VIP, *(("10.1.0.1", port) for port in range(1, SIZE + 2)))]))
    assert list(kernel.read("services")) == before


def test_the_listing_shows_what_the_kernel_gives(
    kernel: Datapath, state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    table(kernel).apply(wanted_rows([service("a", VIP, ("10.1.0.1", 8080), node_port=30080), service("b", OTHER_VIP)]))
    assert show_services(state, True) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["address"], one["port"], one["node_port"], one["backends"]) for one in found] == [
        ("", 30080, True, [{"address": "10.1.0.1", "port": 8080}]),
        (VIP, 80, False, [{"address": "10.1.0.1", "port": 8080}]),
        (OTHER_VIP, 80, False, []),
    ]
    show_services(state, False)
    shown = capsys.readouterr().out
    assert "10.96.0.1:80/TCP" in shown
    assert "none: refused" in shown


@contextlib.contextmanager
def naming(end: End, ports: range) -> Iterator[None]:
    """Listeners that say their own port to whoever connects."""
    listeners = []
    for port in ports:
        listener = end.socket(socket.AF_INET)
        listener.bind((end.address(), port))
        listener.listen(128)
        listeners.append(listener)
    child = os.fork()
    if not child:
        import select

        while True:
            for ready in select.select(listeners, [], [])[0]:
                with contextlib.suppress(OSError), ready.accept()[0] as line:
                    line.send(str(ready.getsockname()[1]).encode())
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        for listener in listeners:
            listener.close()


@pytest.fixture
def hooked(kernel: Datapath, cgroup: Path) -> Path:
    """A cgroup whose sockets reach Services."""
    descriptor = os.open(cgroup, os.O_RDONLY)
    for hook in HOOKS:
        kernel.link(f"{hook}-test", hook, descriptor, CGROUP[hook])
    os.close(descriptor)
    return cgroup


def asked_while(cgroup: Path, client: End, ask: Callable[[], list[str]], change: Callable[[int], None]) -> list[str]:
    """What a process of the cgroup found wrong, while rows were changed in turns 1, 2, ..."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, json.dumps(run_in(cgroup, client.space, ask)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    turn = 0
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        turn += 1
        change(turn)
    assert turn > 5
    with os.fdopen(reading) as answer:
        return json.loads(answer.read() or '["the process died"]')


def test_no_connection_meets_another_services_backend_while_rows_change(
    kernel: Datapath, net: Network, hooked: Path
) -> None:
    client, server = net.add("client", "10.1.0.1"), net.add("server", "10.1.0.2")
    where = server.address()
    held = table(kernel)
    low, high = [(where, port) for port in range(1001, 1009)], [(where, port) for port in range(2001, 2009)]

    def ask() -> list[str]:
        """What services answer by ports of the other's, or not at all."""
        wrong, until = [], time.monotonic() + 2
        while time.monotonic() < until:
            for vip, first in ((VIP, "1"), (OTHER_VIP, "2")):
                try:
                    with socket.create_connection((vip, 80), timeout=5) as line:
                        said = line.recv(10).decode()
                except OSError as error:
                    said = repr(error)
                wrong += [] if said.startswith(first) else [f"{vip}: {said!r}"]
        return wrong

    def change(turn: int) -> None:
        count = 1 + turn % 8
        held.apply(wanted_rows([service("a", VIP, *low[:count]), service("b", OTHER_VIP, *high[-count:])]))

    change(0)
    with naming(server, range(1001, 1009)), naming(server, range(2001, 2009)):
        assert asked_while(hooked, client, ask, change) == []


def test_a_service_refuses_nobody_while_its_row_is_written(kernel: Datapath, net: Network, hooked: Path) -> None:
    client, server = net.add("client", "10.1.0.1"), net.add("server", "10.1.0.2")
    held = table(kernel)
    held.apply(wanted_rows([service("a", VIP, *((server.address(), port) for port in range(1, 9)), protocol="UDP")]))
    ((front, row),) = held.rows.items()
    rows = [pack_service(row.first + skip, 8 - skip, 0, row.number) for skip in range(4)]

    def ask() -> list[str]:
        wrong, until = [], time.monotonic() + 2
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            while time.monotonic() < until:
                try:
                    line.connect((VIP, 80))
                except OSError as error:
                    wrong.append(repr(error))
        return wrong

    # Without the grace period that apply() has between two writes: many more of them.
    assert asked_while(hooked, client, ask, lambda turn: kernel.update("services", front.pack(), rows[turn % 4])) == []
