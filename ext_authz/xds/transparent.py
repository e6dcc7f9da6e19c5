# SPDX-License-Identifier: Apache-2.0
"""
The transparent listener: connections that the datapath steers here, each to the destination its client asked for.

Who connects, and what policy wants of the connection, stands in the datapath's row for it, which the module's listener
filter reads; a connection without one is closed. The filter names the chain that fits in filter state, and the matcher
follows it: `http` where the row says that requests are to be judged and the client speaks no TLS, `tcp` for all else.
There the network filter judges, TLS by its server name, and closes what it cannot judge. No name, no chain: closed.

The server sees the client's address (`original_src`), and the module marks each connection to a server with the
client's token: connections with other options share no pool, so none is ever used for another client.
"""

from __future__ import annotations

from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType, ClusterLbPolicy
from envoy_data_plane.envoy.config.listener.v3 import AdditionalAddress, FilterChain, Listener, ListenerFilter
from envoy_data_plane.envoy.extensions.filters.listener.original_dst.v3 import OriginalDst
from envoy_data_plane.envoy.extensions.filters.listener.original_src.v3 import OriginalSrc
from envoy_data_plane.envoy.extensions.filters.listener.tls_inspector.v3 import TlsInspector
from envoy_data_plane.envoy.extensions.matching.common_inputs.network.v3 import FilterStateInput
from envoy_data_plane.google.protobuf import Any, StringValue
from envoy_data_plane.xds.core.v3 import TypedExtensionConfig
from envoy_data_plane.xds.type.matcher.v3 import (
    Matcher,
    MatcherMatcherTree,
    MatcherMatcherTreeMatchMap,
    MatcherOnMatch,
)

from ext_authz.xds.clusters import UPSTREAM, http_options
from ext_authz.xds.listeners import connection_manager, follow_filter, peer_filter, tcp_filters
from ext_authz.xds.parts import NAME, address, seconds
from ext_authz.xds.setup import Setup, Steering, Target, UpstreamHttp

HTTP, TCP = "http", "tcp"
# Filter state of the module's listener filter.
_CHAIN = f"{NAME}.chain"


def listener(setup: Setup, steering: Steering) -> Listener:
    made = Listener(
        name=NAME,
        address=address(setup.listen),
        transparent=True,
        listener_filters=_listener_filters(setup),
        filter_chains=[
            FilterChain(name=HTTP, filters=[follow_filter(setup), connection_manager(setup)]),
            FilterChain(name=TCP, filters=tcp_filters(setup)),
        ],
        filter_chain_matcher=_matcher(),
    )
    if steering.ip6:
        made.additional_addresses = [AdditionalAddress(address=address(Target("::1", setup.listen.port)))]
    return made


def cluster() -> Cluster:
    """Where the client wanted to go, and nowhere else."""
    return Cluster(
        name=UPSTREAM,
        type=ClusterDiscoveryType.ORIGINAL_DST,
        lb_policy=ClusterLbPolicy.CLUSTER_PROVIDED,
        connect_timeout=seconds(5),
        typed_extension_protocol_options=http_options(UpstreamHttp.SAME),
    )


def _listener_filters(setup: Setup) -> list[ListenerFilter]:
    """The inspector stands before the module, which asks it for the server's name."""
    return [
        ListenerFilter(name="envoy.filters.listener.original_dst", typed_config=Any.pack(OriginalDst())),
        ListenerFilter(name="envoy.filters.listener.tls_inspector", typed_config=Any.pack(TlsInspector())),
        ListenerFilter(name=NAME, typed_config=Any.pack(peer_filter(setup))),
        ListenerFilter(name="envoy.filters.listener.original_src", typed_config=Any.pack(OriginalSrc())),
    ]


def _matcher() -> Matcher:
    wanted = TypedExtensionConfig(name="chain", typed_config=Any.pack(FilterStateInput(key=_CHAIN)))
    chains = MatcherMatcherTreeMatchMap(map={name: _take(name) for name in (HTTP, TCP)})
    return Matcher(matcher_tree=MatcherMatcherTree(input=wanted, exact_match_map=chains))


def _take(chain: str) -> MatcherOnMatch:
    return MatcherOnMatch(action=TypedExtensionConfig(name=chain, typed_config=Any.pack(StringValue(value=chain))))
