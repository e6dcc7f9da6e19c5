# SPDX-License-Identifier: Apache-2.0
"""
What Envoy's configuration says of the filter that asks.

It travels as gRPC initial metadata of the filter's grpc_service (a client cannot reach it): `idmesh-direction`
ingress, egress or both; `idmesh-destination` as in native/include/idmesh/check.h; `idmesh-port` the port that
policies see, if not the destination's own; `idmesh-require` evidence that must be present; `idmesh-next: http` where
an HTTP filter asks again; `idmesh-peer: source-address` where ext_proc may take the peer from that attribute.

Certificates count where `idmesh-trust-domain` names ours; then `idmesh-certificate` must report, in each call, what
Envoy's format as in native/include/idmesh/peer.h gives. `idmesh-address: ignored` says that peers come through others'
addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ext_authz.engine._engine import ffi, lib

Words = tuple[tuple[str, str], ...]

_DIRECTIONS = {"ingress": lib.IDM_INGRESS, "egress": lib.IDM_EGRESS, "both": lib.IDM_CHECK_BOTH}
_EVIDENCE = {
    "address": lib.IDM_EVIDENCE_ADDRESS,
    "datapath": lib.IDM_EVIDENCE_DATAPATH,
    "certificate": lib.IDM_EVIDENCE_CERTIFICATE,
}
_ADDRESSES = {"evidence": 0, "ignored": 1}
_PEERS = {"metadata": 0, "source-address": 1}
# Filters' configurations whose options are remembered.
_KNOWN_MAX = 1024
# cffi frees what nobody holds: texts live as long as the options that point to them.
_KEPT: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class Options:
    """The C half's options for what calls carry."""

    def __init__(self, direction: str = "ingress") -> None:
        self._direction = direction
        self._known: dict[Words, Any] = {}

    def of(self, metadata: Sequence[tuple[str, str | bytes]]) -> Any:
        """
        The options of a call.

        Raises:
            ValueError, KeyError: A word makes no sense, or is given twice.
        """
        words = _relevant(metadata)
        known = self._known.get(words)
        if known is None:
            known = self._read(dict(words))
            if len(self._known) >= _KNOWN_MAX:  # a caller that varies its words gains nothing by it
                self._known.clear()
            self._known[words] = known
        return known

    def _read(self, words: dict[str, str]) -> Any:
        options = ffi.new("struct idm_check_options *")
        options.direction = _DIRECTIONS[words.get("idmesh-direction", self._direction)]
        options.http_follows = words.get("idmesh-next") == "http"
        options.source_address = _PEERS[words.get("idmesh-peer", "metadata")]
        options.port = _port(words.get("idmesh-port", "0"))
        _KEPT[options] = [
            _borrow(options.destination, words.get("idmesh-destination")),
            _borrow(options.certificate, words.get("idmesh-certificate")),
            _borrow(options.peer.trust_domain, words.get("idmesh-trust-domain")),
        ]
        options.peer.required = sum({_EVIDENCE[word] for word in words.get("idmesh-require", "").split(",") if word})
        options.peer.address_ignored = _ADDRESSES[words.get("idmesh-address", "evidence")]
        if not lib.idm_peer_rules_valid(ffi.addressof(options, "peer")):
            raise ValueError("idmesh-require, idmesh-address and idmesh-trust-domain contradict each other")
        return options


def _borrow(place: Any, text: str | None) -> Any:
    """Point to a text; whoever gets its memory must hold it as long as the place is read."""
    if text is None:
        return None
    data = text.encode()
    kept = ffi.new("char[]", data)
    place.ptr, place.size = kept, len(data)
    return kept


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise ValueError("idmesh-port is no port")
    return int(text)


def _relevant(metadata: Sequence[tuple[str, str | bytes]]) -> Words:
    """Our keys. One given twice is refused: which of them would count?"""
    found = {}
    for key, value in metadata or ():
        if key.startswith("idmesh-"):
            if key in found:
                raise ValueError(f"{key} is given twice")
            found[key] = value if isinstance(value, str) else value.decode()
    return tuple(sorted(found.items()))
