# SPDX-License-Identifier: Apache-2.0
"""Laws of shared ports: one that somebody listens at is found, even by who offers to share it."""

import socket

import pytest

from ext_authz.agent.listeners import taken_listeners


def bootstrap(host: str, port: int) -> dict:
    return {"static_resources": {"listeners": [{"address": {"socket_address": {"address": host, "port_value": port}}}]}}


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_at_which_somebody_listens_is_taken(shared):
    with socket.socket() as other:
        if shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        assert taken_listeners(bootstrap("127.0.0.1", port)) == [f"127.0.0.1:{port}"]
    assert taken_listeners(bootstrap("127.0.0.1", port)) == []


def test_an_ipv6_address_is_told_in_brackets():
    with socket.socket(socket.AF_INET6) as other:
        try:
            other.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        other.listen(1)
        port = other.getsockname()[1]
        assert taken_listeners(bootstrap("::1", port)) == [f"[::1]:{port}"]


@pytest.mark.parametrize("config", [None, [], {}, {"staticResources": {"listeners": 1}}, bootstrap("a.name", 80)])
def test_what_names_no_address_takes_none(config):
    assert taken_listeners(config) == []
