# SPDX-License-Identifier: Apache-2.0
"""Packets made by hand are what a receiver takes for right, and events are read where C puts them."""

from __future__ import annotations

import struct
from dataclasses import fields
from ipaddress import ip_address

import pytest

from ext_authz.play.events import SIZE, VERDICT, Event, events_of
from ext_authz.play.packets import (
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    Traffic,
    arp,
    checksum,
    ip_header,
    transport_checksum,
)
from tests.conftest import missing

ENDS4, ENDS6 = ("10.0.0.1", "203.0.113.9"), ("fd00::1", "2001:db8::9")


@pytest.mark.parametrize("ends", [ENDS4, ENDS6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP, ICMPV6])
def test_checksums_come_out_as_receivers_compute_them(ends: tuple[str, str], protocol: int) -> None:
    """The sum over everything, its own field included, is zero (RFC 1071)."""
    for port, token in ((8, b"even"), (443, b"odd"), (65535, b"")):
        segment = Traffic(*ends, protocol, port & (0xFF if protocol in (ICMP, ICMPV6) else 0xFFFF), token=token)
        assert transport_checksum(*ends, protocol, segment.segment()) in (0, 0xFFFF)


def test_the_header_of_ip_says_what_follows() -> None:
    four = Traffic(*ENDS4, UDP, 53, token=b"x" * 11).packet()
    assert checksum(four[:20]) == 0
    assert struct.unpack_from("!H", four, 2)[0] == len(four)
    six = Traffic(*ENDS6, UDP, 53, token=b"x" * 11).packet()
    assert struct.unpack_from("!H", six, 4)[0] == len(six) - 40
    assert six[8:24] == ip_address(ENDS6[0]).packed
    assert ip_header(*ENDS6, TCP, 0, hops=255)[7] == 255


def test_sctp_carries_the_checksum_of_its_standard() -> None:
    """CRC32c over the packet with zero in its place; the digits are that checksum's usual check value."""
    from ext_authz.play.packets import _crc32c

    assert _crc32c(b"123456789") == 0xE3069283
    segment = Traffic(*ENDS4, SCTP, 9).segment()
    assert struct.unpack_from("<I", segment, 8)[0] == _crc32c(segment[:8] + bytes(4) + segment[12:])


def test_an_error_quotes_what_its_receiver_may_have_sent() -> None:
    quoted = Traffic(*ENDS4, ICMP, 3).segment()[8:]
    assert quoted[12:20] == ip_address(ENDS4[1]).packed + ip_address(ENDS4[0]).packed
    assert len(arp(1, "02:00:00:00:00:01", ENDS4[0], "00:00:00:00:00:00", ENDS4[1])) == 28


def test_events_are_read_where_c_puts_them() -> None:
    try:
        from ext_authz.datapath.layout import row
    except ImportError as error:
        missing(str(error))
    packer = row("idm_event")
    assert packer.size == SIZE
    values = {name: number % 200 for number, name in enumerate(packer.names, 1)}
    source, destination = ip_address("::ffff:10.0.0.1"), ip_address(ENDS6[0])
    flat = {name: value for name, value in values.items() if not name.startswith(("source_bytes", "destination_bytes"))}
    data = packer.pack(**flat, source_bytes=source.packed, destination_bytes=destination.packed)
    (event,) = events_of(data)
    assert (event.source, event.destination) == ("10.0.0.1", ENDS6[0])
    assert {name: getattr(event, name) for name in flat} == flat
    assert {field.name for field in fields(Event)} == {*flat, "source", "destination"}
    assert VERDICT == 1
