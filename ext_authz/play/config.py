# SPDX-License-Identifier: Apache-2.0
"""One Envoy configuration with many listeners, each as the generator makes it for that address and port."""

from __future__ import annotations

import json
from collections.abc import Iterable

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
from envoy_data_plane.envoy.config.core.v3 import SubstitutionFormatString
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.extensions.access_loggers.file.v3 import FileAccessLog
from envoy_data_plane.google.protobuf import Any, Struct

from ext_authz.xds.bootstrap import bootstrap
from ext_authz.xds.listeners import listener
from ext_authz.xds.parts import NAME, address
from ext_authz.xds.setup import Door, Mode, Setup, Target

_NETWORK_AUTHZ = "envoy.filters.network.ext_authz"
_FIELDS = ("verdict", "at", "drop", "entry", "rule", "policy", "revision")


def render(setup: Setup, places: Iterable[Target]) -> str:
    """A bootstrap with the setup's listener at each of these places. Its destination must not depend on where it is."""
    made = bootstrap(setup)
    assert made.static_resources is not None
    made.static_resources.listeners = [_listener(setup)]
    config = json.loads(made.to_json())
    (one,) = config["staticResources"]["listeners"]
    if setup.mode == Mode.HTTP:
        # A method that Envoy does not know is refused by policy here, not by Envoy before any policy is asked.
        manager = one["filterChains"][0]["filters"][-1]["typedConfig"]
        manager["httpProtocolOptions"] = {"allowCustomMethods": True}
    # Messages are slow to make and to write: the copies differ in nothing but name and address.
    config["staticResources"]["listeners"] = [
        {**one, "name": f"{NAME} {place.text}", "address": json.loads(address(place).to_json())} for place in places
    ]
    return json.dumps(config, indent=1) + "\n"


def _listener(setup: Setup) -> Listener:
    made = listener(setup)
    made.stat_prefix = "place"
    if setup.mode == Mode.TCP:
        made.access_log = [_connection_log(setup)]
    return made


def _connection_log(setup: Setup) -> AccessLog:
    """The decision on each connection, written when it ends."""
    space = _NETWORK_AUTHZ if setup.door == Door.EXT_AUTHZ else NAME
    fields = {
        "peer": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
        **{name: f"%DYNAMIC_METADATA({space}:{name})%" for name in _FIELDS},
    }
    log = FileAccessLog(
        path=setup.access_log, log_format=SubstitutionFormatString(json_format=Struct.from_dict(fields))
    )
    return AccessLog(name="envoy.access_loggers.file", typed_config=Any.pack(log))
