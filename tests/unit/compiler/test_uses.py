# SPDX-License-Identifier: Apache-2.0
"""What is remembered of learned names is no more than what is there asks for."""

from __future__ import annotations

from ipaddress import ip_address

from ext_authz.compiler.uses import UseCounter
from ext_authz.identity.labels import FQDN, Label
from ext_authz.identity.selectors import from_fqdn


def test_addresses_of_a_name_that_stays_are_forgotten() -> None:
    """A name behind a load balancer has other addresses every few seconds, for ever."""
    uses = UseCounter()
    uses.set_selectors([from_fqdn(Label(FQDN, "api.example.com"))])
    for number in range(5000):
        address = f"10.0.{number >> 8}.{number & 255}"
        learned = uses.learned({"api.example.com": (address,)}, set())
        assert set(learned) == {ip_address(address)}
    assert len(uses._parsed) < 1100
