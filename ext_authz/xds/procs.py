# SPDX-License-Identifier: Apache-2.0
"""
The ext_proc door: a filter that shows the service headers both ways, bodies never.

Who the peer is comes from the module's listener filter where that stands in front. A stock Envoy has only the
attribute source.address to tell, which is the connection's address as long as Envoy believes no X-Forwarded-For:
the setup is refused otherwise, and the service is told that it may read it.
"""

from __future__ import annotations

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutationRules
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    ExternalProcessorRouteCacheAction,
    MetadataOptions,
    MetadataOptionsMetadataNamespaces,
    ProcessingMode,
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode

from ext_authz.xds import authz
from ext_authz.xds.parts import NAME, seconds
from ext_authz.xds.setup import Setup

# Under the filter's own name, as with ext_authz: only the listener filter writes our namespace.
METADATA = "envoy.filters.http.ext_proc"
_SEND, _SKIP = ProcessingModeHeaderSendMode.SEND, ProcessingModeHeaderSendMode.SKIP


def http_filter(setup: Setup) -> ExternalProcessor:
    words = {} if setup.listener_filter else {"idmesh-peer": "source-address"}
    return ExternalProcessor(
        grpc_service=authz.service(setup, words),
        failure_mode_allow=setup.observe,  # who only looks on must not deny by being away
        status_on_error=HttpStatus(code=StatusCode.Forbidden),
        message_timeout=seconds(setup.authz_timeout_ms / 1000),
        processing_mode=_mode(),
        request_attributes=_attributes(setup),
        # What Envoy answers without asking (a redirect to the plain path) is told from an upstream's answer by this.
        response_attributes=["response.code_details"],
        metadata_options=MetadataOptions(forwarding_namespaces=_untyped(NAME), receiving_namespaces=_untyped(METADATA)),
        mutation_rules=_mutation_rules(),
        # A header that policy changes must not send the request elsewhere than where it was judged to go.
        route_cache_action=ExternalProcessorRouteCacheAction.RETAIN,
        observability_mode=setup.observe,
        # Of an observer Envoy keeps the streams of requests that are over, for this long.
        deferred_close_timeout=seconds(1) if setup.observe else None,
        stat_prefix=NAME,
    )


def _mode() -> ProcessingMode:
    """Only gRPC and the like have trailers: asking for those of responses costs nothing else anything."""
    nothing = ProcessingModeBodySendMode.NONE
    return ProcessingMode(
        request_header_mode=_SEND,
        response_header_mode=_SEND,
        request_body_mode=nothing,
        response_body_mode=nothing,
        request_trailer_mode=_SKIP,
        response_trailer_mode=_SEND,
    )


def _attributes(setup: Setup) -> list[str]:
    """Addresses come with their ports; the protocol is for the flow record."""
    names = ["request.protocol", "destination.address"]
    if not setup.listener_filter:
        names.append("source.address")
    if setup.sni:
        names.append("connection.requested_server_name")
    return names


def _untyped(name: str) -> MetadataOptionsMetadataNamespaces:
    return MetadataOptionsMetadataNamespaces(untyped=[name])


def _mutation_rules() -> HeaderMutationRules:
    """What policies may change: headers, and neither path nor host. What is refused fails the request."""
    return HeaderMutationRules(disallow_system=True, allow_envoy=True, disallow_is_error=True)
