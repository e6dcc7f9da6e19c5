# SPDX-License-Identifier: Apache-2.0
"""Laws of where the service may listen."""

from __future__ import annotations

import pytest

from ext_authz.service.listen import AddressError, parse_address


@pytest.mark.parametrize("text", ["127.0.0.1:9000", "[::1]:9000", "localhost:9000", "127.8.9.1:9000"])
def test_loopback_is_allowed(text: str) -> None:
    assert parse_address(text).port == 9000


@pytest.mark.parametrize("text", ["0.0.0.0:9000", "[::]:9000", "10.0.0.1:9000", "192.168.1.1:1", "example.org:80"])
def test_tcp_beyond_loopback_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


@pytest.mark.parametrize("text", ["unix:", "unix:@abstract", "unix:\0x", "9000", ":9000", "127.0.0.1:0", "127.0.0.1:x"])
def test_what_is_no_address_of_ours_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


def test_workers_have_one_address_each() -> None:
    path, port = parse_address("unix:/run/idmesh/a.sock"), parse_address("127.0.0.1:9000")
    assert [path.worker(i, 2).text for i in range(2)] == ["unix:/run/idmesh/a.sock.0", "unix:/run/idmesh/a.sock.1"]
    assert [port.worker(i, 2).text for i in range(2)] == ["127.0.0.1:9000", "127.0.0.1:9001"]


def test_ports_never_run_over() -> None:
    with pytest.raises(AddressError):
        parse_address("127.0.0.1:65535").worker(0, 2)


def test_a_path_that_no_socket_can_have_is_refused() -> None:
    with pytest.raises(AddressError):
        parse_address("unix:/" + "x" * 110)
