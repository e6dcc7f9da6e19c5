# SPDX-License-Identifier: Apache-2.0
"""
TLS towards clients: the listener verifies their certificates, and what it verified is reported to whoever judges.

Envoy reports certificates that nobody vouches for like verified ones, so a trust domain is configured only where this
context stands: a trusted CA, certificates required, SPIFFE ids of the trust domain only, and no resumed sessions, which
are not verified again. Envoy's RBAC filter alone is told whether a certificate was verified: it closes connections
whose was not, should somebody weaken the context later. It does so at the client's first byte, so what a TCP server
says before that would be read by then.

The module cannot read when a certificate ends. Envoy's formatter can: set_filter_state reports it once a connection,
and a filter of the module before it holds everybody back until the handshake is complete.
"""

from __future__ import annotations

from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    SubstitutionFormatString,
    TransportSocket,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter
from envoy_data_plane.envoy.config.rbac.v3 import Permission, Policy, Principal, Rbac
from envoy_data_plane.envoy.extensions.filters.common.set_filter_state.v3 import (
    FilterStateValue,
    FilterStateValueSharedWithUpstream,
)
from envoy_data_plane.envoy.extensions.filters.network.dynamic_modules.v3 import DynamicModuleNetworkFilter
from envoy_data_plane.envoy.extensions.filters.network.rbac.v3 import Rbac as NetworkRbac
from envoy_data_plane.envoy.extensions.filters.network.set_filter_state.v3 import Config as SetFilterState
from envoy_data_plane.envoy.extensions.rbac.principals.mtls_authenticated.v3 import Config as MtlsAuthenticated
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    DownstreamTlsContext,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TlsCertificate,
    TlsParameters,
    TlsParametersTlsProtocol,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.google.protobuf import Any

from ext_authz.xds.parts import NAME, module_of, struct
from ext_authz.xds.setup import Door, Mode, Setup

# As native/include/idmesh/peer.h reads it.
REPORT = "%DOWNSTREAM_PEER_CERT_V_END(%s)%;%DOWNSTREAM_PEER_URI_SAN%"
REPORT_KEY = f"{NAME}.certificate"
HANDSHAKE_SECONDS = 10


def transport_socket(setup: Setup) -> TransportSocket | None:
    if setup.tls is None:
        return None
    # Cilium's own minimum, and the only version whose handshake hides the client's certificate.
    minimum = TlsParameters(tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_3)
    pair = TlsCertificate(
        certificate_chain=DataSource(filename=str(setup.tls.certificate)),
        private_key=DataSource(filename=str(setup.tls.key)),
    )
    context = DownstreamTlsContext(
        common_tls_context=CommonTlsContext(
            tls_params=minimum,
            tls_certificates=[pair],
            validation_context=_validation(setup),
            alpn_protocols=["h2", "http/1.1"] if setup.mode == Mode.HTTP else [],
        ),
    )
    if setup.trust_domain:
        context.require_client_certificate = True
        context.disable_stateless_session_resumption = True
        context.disable_stateful_session_resumption = True
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def _validation(setup: Setup) -> CertificateValidationContext | None:
    if not setup.trust_domain or setup.tls is None:
        return None
    ours = SubjectAltNameMatcher(
        san_type=SubjectAltNameMatcherSanType.URI, matcher=StringMatcher(prefix=f"spiffe://{setup.trust_domain}/")
    )
    return CertificateValidationContext(
        trusted_ca=DataSource(filename=str(setup.tls.ca)), match_typed_subject_alt_names=[ours]
    )


def certificate_filters(setup: Setup) -> list[Filter]:
    """What must stand before whoever judges."""
    if not setup.trust_domain:
        return []
    return [*(_report_filters(setup) if setup.door == Door.MODULE else []), _verified_filter()]


def _verified_filter() -> Filter:
    verified = Any.pack(MtlsAuthenticated(any_validated_client_certificate=True))
    principal = Principal(
        custom=TypedExtensionConfig(name="envoy.rbac.principals.mtls_authenticated", typed_config=verified)
    )
    policy = Policy(permissions=[Permission(any=True)], principals=[principal])
    rbac = NetworkRbac(rules=Rbac(policies={"verified": policy}), stat_prefix=f"{NAME}.")
    return Filter(name="envoy.filters.network.rbac", typed_config=Any.pack(rbac))


def _report_filters(setup: Setup) -> list[Filter]:
    """For the module; the services are told in their calls."""
    wait = DynamicModuleNetworkFilter(
        dynamic_module_config=module_of(setup), filter_name=f"{NAME}.handshake", filter_config=struct({})
    )
    value = FilterStateValue(
        object_key=REPORT_KEY,
        factory_key="envoy.string",
        format_string=SubstitutionFormatString(text_format_source=DataSource(inline_string=REPORT)),
        shared_with_upstream=FilterStateValueSharedWithUpstream.ONCE,
    )
    report = SetFilterState(on_new_connection=[value])
    return [
        Filter(name=f"{NAME}.handshake", typed_config=Any.pack(wait)),
        Filter(name="envoy.filters.network.set_filter_state", typed_config=Any.pack(report)),
    ]
