# SPDX-License-Identifier: Apache-2.0
"""The one generator of Envoy configuration: a Setup in, a complete bootstrap out."""

from __future__ import annotations

import json

from envoy_data_plane.envoy.config.bootstrap.v3 import Admin, Bootstrap, BootstrapStaticResources
from envoy_data_plane.envoy.config.core.v3 import Node

from ext_authz.xds import authz, transparent
from ext_authz.xds.clusters import upstream_cluster
from ext_authz.xds.listeners import listener
from ext_authz.xds.parts import NAME, address, bootstrap_extension
from ext_authz.xds.setup import Setup, Target


def bootstrap(setup: Setup) -> Bootstrap:
    clusters = [transparent.cluster() if setup.steering else upstream_cluster(setup)]
    if setup.asks_service:
        clusters.append(authz.authz_cluster(setup))
    listeners = [transparent.listener(setup, setup.steering) if setup.steering else listener(setup)]
    return Bootstrap(
        node=Node(id=NAME, cluster=NAME),
        admin=_admin(setup.admin) if setup.admin else None,
        bootstrap_extensions=[bootstrap_extension(setup)] if setup.has_bootstrap else [],
        static_resources=BootstrapStaticResources(listeners=listeners, clusters=clusters),
    )


def _admin(target: Target) -> Admin:
    """Whoever reaches it may end Envoy: its socket is the owner's alone, whatever the umask."""
    made = address(target)
    if made.pipe:
        made.pipe.mode = 0o600
    return Admin(address=made)


def render(setup: Setup) -> str:
    """
    As JSON: YAML writers leave `n`, `y` and `on` unquoted, and Envoy reads those as booleans.
    """
    return json.dumps(json.loads(bootstrap(setup).to_json()), indent=2) + "\n"
