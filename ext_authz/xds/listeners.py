# SPDX-License-Identifier: Apache-2.0
"""
The listener: who connects is asked of the socket first, then every request or connection is judged.

Policies match the canonical path, and the backend must receive that same path, so the connection manager resolves
dot segments and repeated slashes, and redirects escaped slashes to their plain form.
"""

from __future__ import annotations

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
from envoy_data_plane.envoy.config.core.v3 import (
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    SubstitutionFormatString,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener, ListenerFilter
from envoy_data_plane.envoy.config.rbac.v3 import Permission, PermissionSet, Policy, Principal, Rbac
from envoy_data_plane.envoy.config.route.v3 import (
    HeaderMatcher,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.access_loggers.file.v3 import FileAccessLog
from envoy_data_plane.envoy.extensions.filters.http.dynamic_modules.v3 import DynamicModuleFilter
from envoy_data_plane.envoy.extensions.filters.http.rbac.v3 import Rbac as RbacFilter
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.listener.dynamic_modules.v3 import DynamicModuleListenerFilter
from envoy_data_plane.envoy.extensions.filters.listener.original_dst.v3 import OriginalDst
from envoy_data_plane.envoy.extensions.filters.listener.proxy_protocol.v3 import ProxyProtocol
from envoy_data_plane.envoy.extensions.filters.listener.tls_inspector.v3 import TlsInspector
from envoy_data_plane.envoy.extensions.filters.network.dynamic_modules.v3 import DynamicModuleNetworkFilter
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerServerHeaderTransformation,
    HttpConnectionManagerUpgradeConfig,
    HttpFilter,
)
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import TcpProxy, UpstreamConnectMode
from envoy_data_plane.envoy.type.matcher.v3 import PathMatcher, RegexMatcher, StringMatcher
from envoy_data_plane.google.protobuf import Any, Struct

from ext_authz.xds import authz, procs, tls
from ext_authz.xds.clusters import UPSTREAM
from ext_authz.xds.parts import NAME, address, door_config, module_of, seconds, struct
from ext_authz.xds.setup import Door, Mode, RbacRule, Setup

_ESCAPED_SLASHES = HttpConnectionManagerPathWithEscapedSlashesAction.UNESCAPE_AND_REDIRECT
_EARLY_DATA_BYTES = 64 * 1024
_CERTIFIED_S = 3600  # what a connection may outlive the certificate it was let through for, at most
_STEERED_IDLE_S = 6 * 3600  # IDM_LIFE_TCP_S: as long as the datapath keeps a silent connection
# The service's metadata arrives under its filter's name.
_AUTHZ_METADATA = "envoy.filters.http.ext_authz"
_LOGGED = ("verdict", "at", "drop", "entry", "rule", "policy", "revision", "decision", "source", "destination")


def listener(setup: Setup) -> Listener:
    filters = tcp_filters(setup) if setup.mode == Mode.TCP else [connection_manager(setup)]
    return Listener(
        name=NAME,
        address=address(setup.listen),
        listener_filters=_listener_filters(setup),
        filter_chains=[_chain(setup, [*tls.certificate_filters(setup), *filters])],
    )


def _chain(setup: Setup, filters: list[Filter]) -> FilterChain:
    chain = FilterChain(filters=filters, transport_socket=tls.transport_socket(setup))
    if setup.tls is not None:  # a client that never ends its handshake holds no connection for ever
        chain.transport_socket_connect_timeout = seconds(tls.HANDSHAKE_SECONDS)
    return chain


def _listener_filters(setup: Setup) -> list[ListenerFilter]:
    filters = []
    if setup.proxy_protocol_from:
        proxy = ProxyProtocol(allow_requests_without_proxy_protocol=True)
        filters.append(ListenerFilter(name="envoy.filters.listener.proxy_protocol", typed_config=Any.pack(proxy)))
    if setup.original_dst and setup.asks_service:  # the module asks the kernel itself
        restore = Any.pack(OriginalDst())
        filters.append(ListenerFilter(name="envoy.filters.listener.original_dst", typed_config=restore))
    if setup.sni:
        filters.append(
            ListenerFilter(name="envoy.filters.listener.tls_inspector", typed_config=Any.pack(TlsInspector()))
        )
    if setup.has_bootstrap:
        filters.append(ListenerFilter(name=NAME, typed_config=Any.pack(peer_filter(setup))))
    return filters


def peer_filter(setup: Setup) -> DynamicModuleListenerFilter:
    """Learns who connects."""
    config: dict[str, object] = {}
    if setup.proxy_protocol_from:
        config["proxy_protocol_from"] = list(setup.proxy_protocol_from)
    if setup.original_dst:
        config["original_dst"] = True
    if setup.steering:
        config["datapath"] = str(setup.steering.pins)
    return DynamicModuleListenerFilter(
        dynamic_module_config=module_of(setup), filter_name=NAME, filter_config=struct(config)
    )


# ---- connections ----


def tcp_filters(setup: Setup) -> list[Filter]:
    """The judge of connections, and what carries them on."""
    proxy = TcpProxy(stat_prefix=NAME, cluster=UPSTREAM)
    if setup.steering:
        proxy.idle_timeout = seconds(_STEERED_IDLE_S)
    filters = []
    if setup.door == Door.MODULE:
        judge = DynamicModuleNetworkFilter(
            dynamic_module_config=module_of(setup), filter_name=NAME, filter_config=struct(door_config(setup))
        )
        filters.append(Filter(name=NAME, typed_config=Any.pack(judge)))
        if setup.trust_domain:  # otherwise tcp_proxy reads nothing, and the handshake that is waited for never ends
            proxy.max_early_data_bytes = _EARLY_DATA_BYTES
    elif setup.door == Door.EXT_AUTHZ:
        # The filter asks at the client's first byte; without this a denied client would read a banner before.
        proxy.upstream_connect_mode = UpstreamConnectMode.ON_DOWNSTREAM_DATA
        proxy.max_early_data_bytes = _EARLY_DATA_BYTES
        if setup.trust_domain:  # nobody is asked again when the certificate ends
            proxy.max_downstream_connection_duration = seconds(_CERTIFIED_S)
        filters.append(Filter(name=NAME, typed_config=Any.pack(authz.network_filter(setup))))
    return [*filters, Filter(name="envoy.filters.network.tcp_proxy", typed_config=Any.pack(proxy))]


def follow_filter(setup: Setup) -> Filter:
    """Before a connection manager: ends a connection that a new policy denies altogether, with what it carries."""
    follow = DynamicModuleNetworkFilter(
        dynamic_module_config=module_of(setup), filter_name=f"{NAME}.follow", filter_config=struct(door_config(setup))
    )
    return Filter(name=f"{NAME}.follow", typed_config=Any.pack(follow))


# ---- requests ----


def connection_manager(setup: Setup) -> Filter:
    """HTTP, with the judge of requests."""
    manager = HttpConnectionManager(
        stat_prefix=NAME,
        use_remote_address=setup.use_remote_address,
        xff_num_trusted_hops=setup.trusted_hops,
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=_ESCAPED_SLASHES,
        http2_protocol_options=Http2ProtocolOptions(allow_connect=True),
        upgrade_configs=[HttpConnectionManagerUpgradeConfig(upgrade_type="websocket")],
        route_config=_routes(),
        http_filters=[*_judges(setup), _router()],
        access_log=_access_log(setup),
    )
    if setup.steering:
        _leave_as_sent(manager)
    return Filter(name="envoy.filters.network.http_connection_manager", typed_config=Any.pack(manager))


def _leave_as_sent(manager: HttpConnectionManager) -> None:
    """
    Client and server do not know that a proxy is between them: no headers of ours, no time-outs of ours.

    A client may itself be a proxy for others, so what it forwards passes. Nobody is internal to this Envoy, so it takes
    no orders from x-envoy headers; and none of it says who the client is.
    """
    manager.use_remote_address = False
    manager.skip_xff_append = True
    manager.generate_request_id = False
    manager.preserve_external_request_id = True
    manager.server_header_transformation = HttpConnectionManagerServerHeaderTransformation.PASS_THROUGH
    manager.http_protocol_options = Http1ProtocolOptions(accept_http_10=True)
    manager.stream_idle_timeout = seconds(0)
    manager.common_http_protocol_options = HttpProtocolOptions(idle_timeout=seconds(_STEERED_IDLE_S))


def _routes() -> RouteConfiguration:
    """Everything goes upstream, for as long as it takes: streams and upgraded connections have no end."""
    action = RouteAction(cluster=UPSTREAM, timeout=seconds(0))
    route = Route(match=RouteMatch(prefix="/"), route=action)
    return RouteConfiguration(name=NAME, virtual_hosts=[VirtualHost(name=NAME, domains=["*"], routes=[route])])


def _router() -> HttpFilter:
    router = Router(suppress_envoy_headers=True)
    return HttpFilter(name="envoy.filters.http.router", typed_config=Any.pack(router))


def _judges(setup: Setup) -> list[HttpFilter]:
    if setup.door == Door.EXT_AUTHZ:
        return [HttpFilter(name=_AUTHZ_METADATA, typed_config=Any.pack(authz.http_filter(setup)))]
    if setup.door == Door.EXT_PROC:
        return [HttpFilter(name=procs.METADATA, typed_config=Any.pack(procs.http_filter(setup)))]
    if setup.door == Door.RBAC:
        return [HttpFilter(name="envoy.filters.http.rbac", typed_config=Any.pack(_rbac(setup.rbac)))]
    if setup.door == Door.MODULE:
        return [_module_filter(setup, NAME, door_config(setup))]
    if setup.door == Door.EMPTY:
        return [_module_filter(setup, f"{NAME}.empty", {})]
    return []


def _module_filter(setup: Setup, name: str, config: dict[str, object]) -> HttpFilter:
    judge = DynamicModuleFilter(dynamic_module_config=module_of(setup), filter_name=name, filter_config=struct(config))
    return HttpFilter(name=name, typed_config=Any.pack(judge))


def _rbac(rules: tuple[RbacRule, ...]) -> RbacFilter:
    permissions = [_permission(rule) for rule in rules]
    return RbacFilter(rules=Rbac(policies={NAME: Policy(permissions=permissions, principals=[Principal(any=True)])}))


def _permission(rule: RbacRule) -> Permission:
    path = Permission(url_path=PathMatcher(path=StringMatcher(safe_regex=RegexMatcher(regex=rule.path))))
    if not rule.method:
        return path
    method = HeaderMatcher(name=":method", string_match=StringMatcher(exact=rule.method))
    return Permission(and_rules=PermissionSet(rules=[Permission(header=method), path]))


def _access_log(setup: Setup) -> list[AccessLog]:
    if not setup.access_log:
        return []
    space = {Door.EXT_AUTHZ: _AUTHZ_METADATA, Door.EXT_PROC: procs.METADATA}.get(setup.door, NAME)
    fields = {
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ:PATH)%",  # a query may hold what nobody else should read
        "host": "%REQ(:AUTHORITY)%",
        "status": "%RESPONSE_CODE%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "peer": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
        "upstream": "%UPSTREAM_HOST%",
        **{name: f"%DYNAMIC_METADATA({space}:{name})%" for name in _LOGGED},
    }
    if setup.second_point:
        fields |= {f"upstream_{name}": f"%DYNAMIC_METADATA({NAME}.upstream:{name})%" for name in _LOGGED}
    log = FileAccessLog(
        path=setup.access_log, log_format=SubstitutionFormatString(json_format=Struct.from_dict(fields))
    )
    return [AccessLog(name="envoy.access_loggers.file", typed_config=Any.pack(log))]
