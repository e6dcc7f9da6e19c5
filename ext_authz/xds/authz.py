# SPDX-License-Identifier: Apache-2.0
"""
The ext_authz door: filters that ask the service, and the cluster of its workers.

How the service is to judge travels as gRPC initial metadata, which no client can reach. The peer is the address of
the connection, which Envoy puts into source.address whatever X-Forwarded-For says.
"""

from __future__ import annotations

from collections.abc import Mapping

from envoy_data_plane.envoy.config.cluster.v3 import CircuitBreakers, CircuitBreakersThresholds, Cluster
from envoy_data_plane.envoy.config.core.v3 import (
    ApiVersion,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    HeaderValue,
    RoutingPriority,
)
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz as HttpExtAuthz
from envoy_data_plane.envoy.extensions.filters.network.ext_authz.v3 import ExtAuthz as NetworkExtAuthz
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode

from ext_authz.xds.clusters import http_options, static_cluster
from ext_authz.xds.parts import NAME, seconds
from ext_authz.xds.setup import Setup, UpstreamHttp
from ext_authz.xds.tls import REPORT

CLUSTER = "idmesh_authz"
_MANY = 1 << 20  # a full breaker would deny requests that the service could still answer


def http_filter(setup: Setup) -> HttpExtAuthz:
    return HttpExtAuthz(
        grpc_service=service(setup, timeout_ms=setup.authz_timeout_ms),
        transport_api_version=ApiVersion.V3,
        failure_mode_allow=False,
        status_on_error=HttpStatus(code=StatusCode.Forbidden),
        metadata_context_namespaces=[NAME],
        include_peer_certificate=True,
        include_tls_session=setup.sni,
        encode_raw_headers=True,  # otherwise bytes that are no UTF-8 arrive changed
        stat_prefix=NAME,
    )


def network_filter(setup: Setup) -> NetworkExtAuthz:
    return NetworkExtAuthz(
        stat_prefix=NAME,
        grpc_service=service(setup, timeout_ms=setup.authz_timeout_ms),
        transport_api_version=ApiVersion.V3,
        failure_mode_allow=False,
        metadata_context_namespaces=[NAME],
        include_peer_certificate=True,
        include_tls_session=setup.sni,
    )


def authz_cluster(setup: Setup) -> Cluster:
    """One endpoint per worker: an Envoy worker keeps one HTTP/2 connection to each."""
    cluster = static_cluster(CLUSTER, setup.authz)
    cluster.typed_extension_protocol_options = http_options(UpstreamHttp.HTTP2)
    cluster.circuit_breakers = CircuitBreakers(
        thresholds=[
            CircuitBreakersThresholds(
                priority=RoutingPriority.DEFAULT,
                max_connections=_MANY,
                max_pending_requests=_MANY,
                max_requests=_MANY,
            )
        ]
    )
    return cluster


def service(setup: Setup, more: Mapping[str, str] | None = None, *, timeout_ms: int = 0) -> GrpcService:
    """
    How the workers are asked.

    Args:
        more: Further words of initial metadata.
        timeout_ms: Of a call; 0 for streams, which live as long as their request.
    """
    destination, port = setup.resolved_destination
    words = {"idmesh-direction": str(setup.direction)}
    if destination != "local":
        words["idmesh-destination"] = destination
    if port:
        words["idmesh-port"] = str(port)
    words |= _evidence(setup)
    return GrpcService(
        envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=CLUSTER),
        timeout=seconds(timeout_ms / 1000) if timeout_ms else None,
        initial_metadata=[HeaderValue(key=key, value=value) for key, value in (words | dict(more or {})).items()],
    )


def _evidence(setup: Setup) -> dict[str, str]:
    """What counts as evidence of the peer; the certificate is a format that Envoy fills in for each call."""
    words = {"idmesh-require": ",".join(setup.require), "idmesh-address": "ignored" if setup.address_ignored else ""}
    if setup.trust_domain:
        words |= {"idmesh-trust-domain": setup.trust_domain, "idmesh-certificate": REPORT}
    return {key: value for key, value in words.items() if value}
