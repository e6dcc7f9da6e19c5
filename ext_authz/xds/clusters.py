# SPDX-License-Identifier: Apache-2.0
"""Clusters: where requests go, and the second point of decision on the way there."""

from __future__ import annotations

from collections.abc import Sequence

from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import Http1ProtocolOptions, Http2ProtocolOptions
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.extensions.filters.http.dynamic_modules.v3 import DynamicModuleFilter
from envoy_data_plane.envoy.extensions.filters.http.upstream_codec.v3 import UpstreamCodec
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
    HttpProtocolOptionsUseDownstreamHttpConfig,
)
from envoy_data_plane.google.protobuf import Any

from ext_authz.xds.parts import NAME, address, evidence_config, module_of, seconds, struct
from ext_authz.xds.setup import Setup, Target, UpstreamHttp

UPSTREAM = "upstream"
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def static_cluster(name: str, targets: Sequence[Target]) -> Cluster:
    """By address; DNS names are resolved again and again by Envoy."""
    endpoints = [LbEndpoint(endpoint=Endpoint(address=address(target))) for target in targets]
    named = any(not target.path and not target.address for target in targets)
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.STRICT_DNS if named else ClusterDiscoveryType.STATIC,
        connect_timeout=seconds(2),
        load_assignment=ClusterLoadAssignment(
            cluster_name=name, endpoints=[LocalityLbEndpoints(lb_endpoints=endpoints)]
        ),
    )


def http_options(kind: UpstreamHttp, filters: Sequence[HttpFilter] = ()) -> dict[str, Any]:
    """How a cluster is spoken to, and the filters that run once a host is chosen."""
    one, two = Http1ProtocolOptions(), Http2ProtocolOptions()
    options = HttpProtocolOptions(http_filters=list(filters))
    if kind == UpstreamHttp.SAME:
        options.use_downstream_protocol_config = HttpProtocolOptionsUseDownstreamHttpConfig(
            http_protocol_options=one, http2_protocol_options=two
        )
    elif kind == UpstreamHttp.HTTP2:
        options.explicit_http_config = HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=two)
    else:
        options.explicit_http_config = HttpProtocolOptionsExplicitHttpConfig(http_protocol_options=one)
    return {_OPTIONS: Any.pack(options)}


def upstream_cluster(setup: Setup) -> Cluster:
    cluster = static_cluster(UPSTREAM, setup.upstreams)
    cluster.typed_extension_protocol_options = http_options(
        setup.upstream_http, _second_point(setup) if setup.second_point else ()
    )
    return cluster


def _second_point(setup: Setup) -> list[HttpFilter]:
    """Judge again for the host that was chosen; the codec must stand last."""
    judge = DynamicModuleFilter(
        dynamic_module_config=module_of(setup),
        filter_name=f"{NAME}.upstream",
        filter_config=struct({"direction": str(setup.direction), **evidence_config(setup)}),
    )
    return [
        HttpFilter(name=f"{NAME}.upstream", typed_config=Any.pack(judge)),
        HttpFilter(name="envoy.filters.http.upstream_codec", typed_config=Any.pack(UpstreamCodec())),
    ]
