# SPDX-License-Identifier: Apache-2.0
"""One Envoy configuration with many listeners, each as the generator makes it for that address and port."""

from __future__ import annotations

import json
from collections.abc import Sequence

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
from envoy_data_plane.envoy.config.core.v3 import SubstitutionFormatString
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.extensions.access_loggers.file.v3 import FileAccessLog
from envoy_data_plane.google.protobuf import Any, Struct

from ext_authz.xds.bootstrap import bootstrap
from ext_authz.xds.listeners import listener
from ext_authz.xds.parts import NAME
from ext_authz.xds.setup import Door, Mode, Setup

_NETWORK_AUTHZ = "envoy.filters.network.ext_authz"
_FIELDS = ("verdict", "at", "drop", "entry", "rule", "policy", "revision")


def render(setups: Sequence[Setup]) -> str:
    """A bootstrap whose listeners are those of all setups; the rest is the first one's."""
    made = bootstrap(setups[0])
    assert made.static_resources is not None
    made.static_resources.listeners = [_listener(setup) for setup in setups]
    return json.dumps(json.loads(made.to_json()), indent=1) + "\n"


def _listener(setup: Setup) -> Listener:
    made = listener(setup)
    made.name = f"{NAME} {setup.listen.text}"
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
