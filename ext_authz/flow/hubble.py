# SPDX-License-Identifier: Apache-2.0
"""
Records as lines of Hubble's exporter: {"flow": {...}, "node_name": "", "time": ""}.

Names and forms are those of Hubble's flow.proto in proto JSON: 64-bit numbers are strings, defaults are left out, our
own fields are a Struct in the Any `extensions`. A response goes the other way, as Hubble's do: its source is who
answered. A record says nothing new about most of its flow, so everything but addresses, times and texts comes out of
one cache (Shape); what is left is one pass of string formatting.

Source: github.com/cilium/cilium api/v1/flow/flow.proto, pkg/hubble/parser/seven
"""

from __future__ import annotations

import time
from collections import OrderedDict
from ipaddress import ip_address

from ext_authz.engine.types import VerdictCode
from ext_authz.flow.facts import End, Facts, Seen, url_path
from ext_authz.flow.names import Names
from ext_authz.flow.record import Door, Flags, FlowType, Record
from ext_authz.flow.shape import Shape, make_end, make_shape
from ext_authz.flow.text import Words, decode, quoted

# Requests whose end was not seen yet: their responses bring neither addresses nor texts.
OPEN_MAX = 16384
_CACHE_MAX = 16384
_L4 = {6: "TCP", 17: "UDP", 132: "SCTP"}
_ICMP = {1: "ICMPv4", 58: "ICMPv6"}
_HEX = frozenset(b"0123456789abcdef")
_END, _REQUEST = FlowType.END, FlowType.REQUEST
_ENDS = (FlowType.RESPONSE, FlowType.END)
_L7 = (FlowType.REQUEST, FlowType.RESPONSE)
_DROPPED = int(VerdictCode.DROPPED)
_NO_ID = bytes(16)
_NO_ENDS = (Door.EXT_AUTHZ, Door.BPF)


class Formatter:
    """Turns records into lines, in the order in which they come."""

    def __init__(self, names: Names, node: str, redact: bool = True) -> None:
        self._names = names
        self._node = quoted(node)
        self._words = Words(redact)
        self._open: OrderedDict[bytes, Record] = OrderedDict()
        self._shapes: dict[tuple[object, ...], Shape] = {}
        self._ends: dict[tuple[int, int, int], End] = {}
        self._addresses: dict[tuple[int, bytes], str] = {}
        self._second = (-1, "")

    def forget_names(self) -> None:
        """Names may have become known: look them up anew."""
        self._shapes.clear()
        self._ends.clear()

    @property
    def open_requests(self) -> int:
        return len(self._open)

    def opened(self, record: Record) -> Record:
        """
        The request or connection whose end a record is, or the record itself. Once for each record, in their order.

        The end of what was not seen (or is long ago) stands for itself: its line says what is known.
        """
        if record.type in _ENDS:
            return self._open.pop(record.decision, record)
        # ext_authz and the kernel see no ends, and a producer without random numbers gives no ids.
        if record.verdict != _DROPPED and record.door not in _NO_ENDS and record.decision != _NO_ID:
            self._open[record.decision] = record
            if len(self._open) > OPEN_MAX:
                self._open.popitem(last=False)
        return record

    def format(self, record: Record, opened: Record) -> Seen:
        """
        Raises:
            RecordError, ValueError: The record says something impossible.
        """
        shape = self._shape(record, opened)
        stamp = self._time(record.time_ns)
        uuid = record.decision.hex()
        middle, summary, path, method = self._texts(record, opened)
        ports = (opened.source_port, opened.destination_port) if opened.protocol in _L4 else (0, 0)
        addresses = opened.source_address, opened.destination_address
        if shape.reply:
            ports, addresses = ports[::-1], addresses[::-1]
        line = (
            f'{{"flow":{{"time":"{stamp}","uuid":"{uuid}",{shape.head}{self._network(opened, addresses, ports)}'
            f'{shape.ends},"node_name":{self._node}{middle}{shape.tail}{_trace(opened.traceparent)}{shape.extensions}'
            f"{self._measures(record, opened)}}}}}"
            f',"Summary":"{summary}"}},"node_name":{self._node},"time":"{stamp}"}}'
        )
        source, destination = (shape.destination, shape.source) if shape.reply else (shape.source, shape.destination)
        facts = Facts(
            shape.verdict,
            source,
            destination,
            ports,
            path,
            _status(record),
            uuid,
            shape.drop_reason,
            method,
            shape.door,
        )
        return Seen(line, facts)

    def _shape(self, record: Record, opened: Record) -> Shape:
        # Everything of few values: type, door, verdict; revision and ends; family to the rules; stage; flags.
        key = (record[2:5], record.flags, record.code if record.flags & Flags.GRPC_STATUS else 0, opened[7:12],
               opened[16:21], opened[22:30], opened.dropped_by, opened.flags)  # fmt: skip
        shape = self._shapes.get(key)
        if shape is None:
            resolver = self._names.at(opened.revision)
            source = self._end(opened.revision, opened.source_identity, opened.source_endpoint)
            destination = self._end(opened.revision, opened.destination_identity, opened.destination_endpoint)
            shape = make_shape(record, opened, resolver, source, destination)
            if len(self._shapes) >= _CACHE_MAX:
                self._shapes.clear()
            self._shapes[key] = shape
        return shape

    def _end(self, revision: int, identity: int, endpoint: int) -> End:
        key = revision, identity, endpoint
        end = self._ends.get(key)
        if end is None:
            if len(self._ends) >= _CACHE_MAX:
                self._ends.clear()
            end = self._ends[key] = make_end(self._names.at(revision).identities, identity, endpoint)
        return end

    def _time(self, time_ns: int) -> str:
        second, rest = divmod(time_ns, 1_000_000_000)
        if second != self._second[0]:
            # A Timestamp ends with the year 9999.
            self._second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(min(second, 253402300799)))
        return f"{self._second[1]}.{rest:09d}Z"

    def _address(self, family: int, data: bytes) -> str:
        key = family, data
        known = self._addresses.get(key)
        if known is None:
            if len(self._addresses) >= _CACHE_MAX:
                self._addresses.clear()
            known = self._addresses[key] = str(ip_address(data[:4] if family == 4 else data))
        return known

    def _network(self, record: Record, addresses: tuple[bytes, bytes], ports: tuple[int, int]) -> str:
        family, protocol = record.family, record.protocol
        made = ""
        if family:
            source, destination = self._address(family, addresses[0]), self._address(family, addresses[1])
            made = f'"IP":{{"source":"{source}","destination":"{destination}","ipVersion":"IPv{family}"}},'
        l4 = _L4.get(protocol)
        if l4:
            return f'{made}"l4":{{"{l4}":{{"source_port":{ports[0]},"destination_port":{ports[1]}}}}},'
        icmp = _ICMP.get(protocol)
        return f'{made}"l4":{{"{icmp}":{{"type":{record.destination_port}}}}},' if icmp else made

    def _texts(self, record: Record, opened: Record) -> tuple[str, str, str, str]:
        """The l7 message, the summary, and path and method for filters."""
        kind = record.type
        if kind not in _L7:
            return "", self._connection_summary(record, opened), "", ""
        words = self._words
        method, protocol = words.word(opened.method), words.word(opened.http_protocol)
        path = words.path(opened.path)
        url = ""
        if path and path[0] != "/":  # * and the absolute form stand for themselves
            url, path = quoted(path)[1:-1], url_path(path)
        elif path or opened.host:
            url = f"{'https' if opened.sni else 'http'}://{words.host(opened.host)}{quoted(path)[1:-1]}"
        status = _status(record)
        # Texts that are missing are left out, as every default.
        http = f',"code":{status}' if status else ""
        http += f',"method":"{method}"' if method else ""
        http += f',"url":"{url}"' if url else ""
        http += f',"protocol":"{protocol}"' if protocol else ""
        if opened.header_count:
            http += f',"headers":{words.headers(opened.headers())}'
        request = f"{method} {url}" if url else method
        if kind == _REQUEST:
            made = f',"l7":{{"type":"REQUEST","http":{{{http[1:]}}}}}'
            return made, f"{protocol} {request}" if protocol else request, path, decode(opened.method)
        latency = record.latency_ns
        made = f',"l7":{{"type":"RESPONSE","latency_ns":"{latency}","http":{{{http[1:]}}}}}'
        summary = f"{protocol or 'HTTP'} {status} {latency // 1_000_000}ms"
        return made, f"{summary} ({request})" if request else summary, path, decode(opened.method)

    def _connection_summary(self, record: Record, opened: Record) -> str:
        name = _L4.get(opened.protocol) or _ICMP.get(opened.protocol) or f"protocol {opened.protocol}"
        if record.type == _END:
            return f"{name} ended after {record.latency_ns // 1_000_000}ms"
        return f"{name} to {self._words.word(opened.sni)}" if opened.sni else name

    def _measures(self, record: Record, opened: Record) -> str:
        """What changes from record to record among our own fields."""
        made = f',"decision_ns":{opened.decision_ns}'
        if record.type == _END:
            made += f',"duration_ns":{record.latency_ns}'
        if opened.sni:
            made += f',"sni":"{self._words.word(opened.sni)}"'
        return made


def _status(record: Record) -> int:
    """HTTP status of the answer: with a grpc-status it is 200."""
    if record.type not in _L7:
        return 0
    return 200 if record.flags & Flags.GRPC_STATUS else record.code


def _trace(traceparent: bytes) -> str:
    """trace_context of a W3C traceparent: version-trace-parent-flags, in lower-case hexadecimal."""
    if not traceparent:
        return ""
    parts = traceparent.split(b"-")
    if len(parts) < 4 or len(parts[1]) != 32 or not _HEX.issuperset(parts[1]) or parts[1] == b"0" * 32:
        return ""
    return f',"trace_context":{{"parent":{{"trace_id":"{parts[1].decode()}"}}}}'
