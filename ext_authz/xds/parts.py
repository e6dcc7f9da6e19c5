# SPDX-License-Identifier: Apache-2.0
"""Small pieces of Envoy configuration that several resources share."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any as Object

from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    AsyncDataSource,
    DataSource,
    Pipe,
    SocketAddress,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.extensions.bootstrap.dynamic_modules.v3 import DynamicModuleBootstrapExtension
from envoy_data_plane.envoy.extensions.dynamic_modules.v3 import DynamicModuleConfig
from envoy_data_plane.google.protobuf import Any, Struct

from ext_authz.xds.setup import Evidence, Setup, Target

# Filters and stats carry this name; Envoy 1.38 also finds the module by it: lib<name>.so in its search path.
NAME = "idmesh"
_MODULE_NAME = "idmesh_envoy"


def seconds(number: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=number)


def address(target: Target) -> Address:
    if target.path:
        return Address(pipe=Pipe(path=target.path))
    return Address(socket_address=SocketAddress(address=target.host, port_value=target.port))


def struct(values: dict[str, Object]) -> Any:
    """A module's configuration: it reads the Struct as JSON."""
    return Any.pack(Struct.from_dict(values))


def module(path: Path) -> DynamicModuleConfig:
    return DynamicModuleConfig(
        name=_MODULE_NAME,
        metrics_namespace=NAME,
        module=AsyncDataSource(local=DataSource(filename=str(path))),
    )


def module_of(setup: Setup) -> DynamicModuleConfig:
    assert setup.module is not None, "checked by Setup"
    return module(setup.module)


def bootstrap_extension(setup: Setup) -> TypedExtensionConfig:
    """Loads and watches the snapshot for all filters of the process."""
    wanted: dict[str, Object] = {"state": str(setup.state)}
    if setup.flow_ring_bytes is not None:
        wanted["flow_ring_bytes"] = setup.flow_ring_bytes
    extension = DynamicModuleBootstrapExtension(
        dynamic_module_config=module_of(setup),
        extension_name=NAME,
        extension_config=struct(wanted),
    )
    return TypedExtensionConfig(name=NAME, typed_config=Any.pack(extension))


def evidence_config(setup: Setup) -> dict[str, Object]:
    """What the peer's identity may rest on; the same at both points of decision."""
    told = [Evidence.DATAPATH] if setup.steering and Evidence.DATAPATH not in setup.require else []
    wanted: dict[str, Object] = {
        "trust_domain": setup.trust_domain,
        "require": list(map(str, [*setup.require, *told])),
        "address": "ignored" if setup.address_ignored else "",
    }
    return {key: value for key, value in wanted.items() if value}


def door_config(setup: Setup) -> dict[str, Object]:
    """What native/envoy/door.h reads; only what differs from its defaults."""
    destination, port = setup.resolved_destination
    wanted: dict[str, Object] = {
        "direction": str(setup.direction),
        "destination": destination,
        "port": port,
        "body": setup.body,
        **evidence_config(setup),
        # Metadata costs more than the decision: of allowed requests only if somebody logs it.
        "metadata": setup.metadata or ("all" if setup.access_log else ""),
    }
    return {key: value for key, value in wanted.items() if value}
