# SPDX-License-Identifier: Apache-2.0
"""Laws of the record: what a producer put is what Python reads, and nothing else is a record."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest
from ext_authz.engine._engine import ffi, lib
from flow_rings import Producer, make_record, record_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from ext_authz.flow.record import FIXED, SIZE_MAX, SIZE_MIN, Flags, Record, RecordError, parse, records

# Set by the producer, or of few values.
_KEPT = {"size", "version", "method_size", "host_size", "path_size", "protocol_size", "sni_size", "traceparent_size",
         "headers_size", "header_count", "type", "door", "verdict", "family", "direction", "decision",
         "source_address", "destination_address"}  # fmt: skip
_NUMBERS = [name for name in FIXED if name not in _KEPT]


def _width(name: str) -> int:
    field = dict(ffi.typeof("struct idm_flow_record").fields)[name]
    return int(ffi.sizeof(field.type))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_number_comes_back_as_it_was_put(data: st.DataObject) -> None:
    wanted = {name: data.draw(st.integers(0, 256 ** _width(name) - 1), name) for name in _NUMBERS}
    wanted["ip_protocol"] = wanted.pop("protocol")
    wanted["flags"] &= ~(Flags.CUT | Flags.HEADERS_CUT)
    got = make_record(**wanted)
    wanted["protocol"] = wanted.pop("ip_protocol")
    assert {name: getattr(got, name) for name in wanted} == wanted


@settings(max_examples=60, deadline=None)
@given(
    texts=st.fixed_dictionaries(
        {name: st.binary(max_size=255) for name in ("method", "host", "protocol", "sni", "traceparent")}
    ),
    path=st.binary(max_size=1024),
    headers=st.lists(st.tuples(st.binary(max_size=60), st.binary(max_size=60)), max_size=6),
)
def test_texts_are_any_bytes(texts: dict[str, bytes], path: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    got = make_record(**texts, path=path, headers=headers)
    assert (got.method, got.host, got.path, got.sni) == (texts["method"], texts["host"], path, texts["sni"])
    assert (got.http_protocol, got.traceparent) == (texts["protocol"], texts["traceparent"])
    assert got.headers() == headers
    assert not got.flags & Flags.CUT


def test_long_texts_are_cut_and_marked() -> None:
    got = make_record(path=b"/" * 2000, host=b"h" * 300, headers=[(b"n" * 200, b"v" * 200)] * 20)
    assert (len(got.path), len(got.host)) == (1024, 255)
    assert got.flags & Flags.CUT
    assert got.flags & Flags.HEADERS_CUT
    assert got.size <= SIZE_MAX


def test_a_batch_is_read_record_by_record() -> None:
    producer = Producer()
    for port in range(100):
        assert producer.put(source_port=port, path=b"/" * port)
    ports = [item.source_port for item in records(producer.view().take()) if isinstance(item, Record)]
    assert ports == list(range(100))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("version", 2, "version 2"),
        ("type", 0, "unknown type 0"),
        ("type", 9, "unknown type 9"),
        ("door", 0, "door 0"),
        ("verdict", 3, "verdict 3"),
        ("family", 5, "family"),
        ("direction", 2, "direction"),
        ("size", 0, "size 0"),
        ("size", 5000, "size 5000"),
        ("path_size", 60000, "texts leave"),
    ],
)
def test_what_this_version_does_not_know_is_refused(field: str, value: int, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        parse(_changed(record_bytes(path=b"/x"), field, value))


def test_headers_that_leave_the_record_are_refused() -> None:
    data = _changed(record_bytes(headers=[(b"a", b"b")]), "header_count", 9)
    with pytest.raises(RecordError, match="header"):
        parse(data).headers()


def test_a_header_whose_value_leaves_the_record_is_refused() -> None:
    good = parse(record_bytes(headers=[(b"a", b"b")]))
    with pytest.raises(RecordError, match="header"):
        good._replace(header_lines=b"\x01\0\xff\0ab").headers()


def test_a_bad_record_hides_no_other() -> None:
    good, bad = record_bytes(source_port=1), _changed(record_bytes(source_port=2), "door", 77)
    found = list(records(good + bad + good))
    assert [type(item) for item in found] == [Record, RecordError, Record]


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=3 * SIZE_MIN), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255))))
def test_any_bytes_give_records_or_reasons(data: bytes, flips: list[tuple[int, int]]) -> None:
    made = bytearray(record_bytes(path=b"/x", headers=[(b"a", b"b")]))
    for at, value in flips:
        made[at % len(made)] = value
    for stream in (data, bytes(made), bytes(made) + data):
        for item in records(stream):
            assert isinstance(item, Record | RecordError)
            if isinstance(item, Record):
                try_headers(item)


def try_headers(item: Record) -> None:
    with contextlib.suppress(RecordError):
        item.headers()


def _changed(data: bytes, field: str, value: int) -> bytes:
    room: Any = ffi.new("struct idm_flow_record *")
    ffi.buffer(room)[:] = data[:SIZE_MIN]
    setattr(room, field, value)
    return bytes(ffi.buffer(room)) + data[SIZE_MIN:]


def test_losses_are_the_producers_count() -> None:
    producer = Producer()
    view = producer.view()
    put = 0
    while producer.put(path=b"/" * 1000):
        put += 1
    for _ in range(9):
        assert not producer.put()
    assert (view.written, view.lost, view.new_losses(), view.new_losses()) == (put, 10, 10, 0)
    assert 0 < view.used <= view.size
    while view.take():
        pass
    assert view.used == 0
    assert producer.put()


def test_a_ring_that_was_read_before_goes_on_where_it_stood() -> None:
    producer = Producer()
    producer.put(source_port=1)
    first = producer.view()
    assert first.take()
    first.close()
    producer.put(source_port=2)
    assert parse(producer.view().take()).source_port == 2


def test_a_damaged_ring_is_skipped_and_counted() -> None:
    producer = Producer()
    view = producer.view()
    producer.put()
    os.pwrite(producer.handle, b"\xff" * 4, lib.IDM_RING_PAGE)
    assert view.take() == b""
    assert view.malformed == 1
    producer.put(source_port=7)
    assert parse(view.take()).source_port == 7
