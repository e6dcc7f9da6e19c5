# SPDX-License-Identifier: Apache-2.0
"""Certificates as evidence: a door that reads them stands behind a TLS context that verifies them."""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.doctor.config.checks_writers import REPORT_KEY, reports
from ext_authz.doctor.config.finding import Finding, check, error, warning
from ext_authz.doctor.config.node import Node
from ext_authz.doctor.config.view import MANAGER, NAME, Chain, Door, Filter, Kind, View

_CONTEXTS = (
    "validation_context",
    "validation_context_sds_secret_config",
    "combined_validation_context",
)
_JUDGES = ("dynamic_modules", "ext_authz", "_proxy")
_AUTHORITIES = ("trusted_ca", "custom_validator_config", "ca_certificate_provider_instance")
_WHY = "Envoy then verifies nobody: no certificate counts as evidence, and where one is required everything is denied"


def wants_certificate(door: Door) -> bool:
    """True if its configuration names a trust domain, or requires a certificate."""
    if door.kind == Kind.MODULE:
        return bool(door.setting("trust_domain").text) or "certificate" in door.setting("require").texts
    return bool(door.word("idmesh-trust-domain")) or "certificate" in door.word("idmesh-require")


@check
def verification(view: View) -> Iterator[Finding]:
    for chain in view.chains:
        if any(wants_certificate(door) for door in chain.all_doors):
            yield from _verification(chain)


def _verification(chain: Chain) -> Iterator[Finding]:
    context = chain.node.get("transport_socket", "typed_config")
    if not context.type.endswith("DownstreamTlsContext"):
        what = "the door wants certificates, and this filter chain has no TLS"
        remedy = "add a transport_socket with DownstreamTlsContext (`idmesh envoy --help`: certificates)"
        yield error("certificate", chain.node.get("transport_socket"), what, _WHY, remedy)
        return
    common = context.get("common_tls_context")
    said = next((common.get(name) for name in _CONTEXTS if common.get(name)), None)
    if said is None:
        what = "the TLS context has no validation_context"
        yield error("certificate", common, what, _WHY, "add validation_context.trusted_ca: the CA of the trust domain")
    else:
        yield from _context(common)
    yield from _resumption(context)
    if not context.get("require_client_certificate").on:
        what = "require_client_certificate is not true"
        why = "clients without a certificate come in; a door that requires one denies each of their requests"
        yield error("certificate", context.get("require_client_certificate"), what, why, "set it to true")


def _resumption(context: Node) -> Iterator[Finding]:
    for name in ("disable_stateless_session_resumption", "disable_stateful_session_resumption"):
        if not context.get(name).on:
            why = "Envoy does not verify the certificate of a resumed session again: it outlives its CA and its end"
            yield error("certificate", context.get(name), f"{name} is not true", why, f"set {name}: true")


@check
def report(view: View) -> Iterator[Finding]:
    """The module reads of the certificate what set_filter_state reports once the handshake is complete."""
    for chain in view.chains:
        doors = [door for door in chain.all_doors if door.kind == Kind.MODULE and door.setting("trust_domain").text]
        if doors and not _reported(chain):
            what = f"no filter reports the certificate as {REPORT_KEY}, behind one that waits for the handshake"
            why = "the module never sees a certificate: every request is denied (172)"
            remedy = "take both network filters from `idmesh envoy --trust-domain`, first in the chain"
            yield error("certificate", chain.node.get("filters"), what, why, remedy)


def _reported(chain: Chain) -> bool:
    """True if one waits and, behind it, one reports, before anybody judges."""
    judges = [index for index, item in enumerate(chain.filters) if item.is_(MANAGER, *_JUDGES) and not _waits(item)]
    front = chain.filters[: judges[0]] if judges else chain.filters
    roles = ["wait" if _waits(item) else "report" for item in front if _waits(item) or reports(item)]
    return roles == ["wait", "report"]


def _waits(item: Filter) -> bool:
    return item.module and item.config.get("filter_name").text == f"{NAME}.handshake"


@check
def verified_only(view: View) -> Iterator[Finding]:
    """Envoy shows the doors no sign of whether it verified a certificate; its RBAC filter knows."""
    for chain in view.chains:
        doors = [door for door in chain.all_doors if wants_certificate(door)]
        if doors and not any(_authenticated(item) for item in chain.filters):
            what = "no network RBAC filter closes connections whose certificate was not verified"
            why = "the doors cannot tell: a later change of this listener's TLS makes any certificate count, unnoticed"
            remedy = "take the filter envoy.filters.network.rbac from what `idmesh envoy --trust-domain` prints"
            yield warning("certificate", chain.node.get("filters"), what, why, remedy)


def _authenticated(item: Filter) -> bool:
    return item.is_("network.rbac") and any(
        node.type.endswith("mtls_authenticated.v3.Config") for _, node in item.config.walk()
    )


def _context(common: Node) -> Iterator[Finding]:
    for context in (
        common.get("validation_context"),
        common.get("combined_validation_context", "default_validation_context"),
    ):
        if context.get("trust_chain_verification").value in ("ACCEPT_UNTRUSTED", 1):
            found = context.get("trust_chain_verification")
            what = "trust_chain_verification is ACCEPT_UNTRUSTED"
            yield error("certificate", found, what, "anybody may make his own certificate", "remove it")
        if context.get("allow_expired_certificate").on:
            found = context.get("allow_expired_certificate")
            what = "allow_expired_certificate is true"
            yield warning("certificate", found, what, "a stolen key is good forever", "remove it")
    plain = common.get("validation_context")
    if plain and not any(plain.get(name) for name in _AUTHORITIES):
        what = "validation_context has no trusted_ca"
        yield error("certificate", plain, what, _WHY, "name the CA of the trust domain in trusted_ca")
