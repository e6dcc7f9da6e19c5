# SPDX-License-Identifier: Apache-2.0
"""Wrong configuration is refused at load, with the reason; right configuration is valid in every Envoy served."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from envoy_harness import MODULE, VERSIONS, envoy_of, refused_config, setup_for

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door, Mode, RbacRule, Setup, SetupError, Steering, Tls, parse_target

BACKEND = parse_target("127.0.0.1:1")
NO_DOOR = (Door.EXT_PROC, Mode.TCP)
AUTHZ = (parse_target("unix:/run/a.0"), parse_target("unix:/run/a.1"))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_generated_bootstrap_is_valid(version: str, tmp_path: Path) -> None:
    envoy = envoy_of(version)
    wanted = [(door, mode, {}) for door, mode in itertools.product(Door, Mode) if (door, mode) != NO_DOOR]
    wanted += [(Door.EXT_PROC, Mode.HTTP, {"observe": True})]
    wanted += [(door, Mode.HTTP, {"listener_filter": True}) for door in (Door.EXT_AUTHZ, Door.EXT_PROC)]
    for door, mode, more in wanted:
        proxied = door == Door.MODULE or "listener_filter" in more
        setup = setup_for(
            door,
            BACKEND,
            mode=mode,
            state=tmp_path,
            authz=AUTHZ,
            second_point=door == Door.MODULE,
            rbac=(RbacRule("/a/.*", "GET"),),
            proxy_protocol_from=("10.0.0.0/8",) if proxied else (),
            original_dst=True,
            sni=True,
            access_log="/dev/null",
            **more,
        )
        config = tmp_path / "envoy.json"
        config.write_text(render(setup))
        command = [envoy.path, "--mode", "validate", "-c", config, "-l", "warning"]
        done = subprocess.run(command, env=envoy.environment(MODULE), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{door} {mode} {more}: {done.stderr[-2000:]}"
        assert "deprecated" not in done.stderr


def _module_setup(tmp_path: Path, **wanted: object) -> Setup:
    return setup_for(Door.MODULE, BACKEND, state=tmp_path, **wanted)


def _edit(tmp_path: Path, edit, **wanted: object) -> Path:  # type: ignore[no-untyped-def]
    config = json.loads(render(_module_setup(tmp_path, **wanted)))
    edit(config)
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(config))
    return path


def _http_config(config) -> dict:  # type: ignore[no-untyped-def,type-arg]
    manager = config["staticResources"]["listeners"][0]["filterChains"][0]["filters"][0]["typedConfig"]
    return manager["httpFilters"][0]["typedConfig"]


def _listener_config(config) -> dict:  # type: ignore[no-untyped-def,type-arg]
    return config["staticResources"]["listeners"][0]["listenerFilters"][0]["typedConfig"]


def _bootstrap_config(config) -> dict:  # type: ignore[no-untyped-def,type-arg]
    return config["bootstrapExtensions"][0]["typedConfig"]


WRONG = {
    "unknown key": (_http_config, "filterConfig", {"directoin": "ingress"}, "unknown key: directoin"),
    "direction": (_http_config, "filterConfig", {"direction": "sideways"}, "direction: must be"),
    "destination": (_http_config, "filterConfig", {"destination": "10.0.0.300"}, "destination: must be"),
    "destination port": (_http_config, "filterConfig", {"destination": "a/b:0"}, "destination: must be"),
    "port": (_http_config, "filterConfig", {"port": 65536}, "port: must be"),
    "port type": (_http_config, "filterConfig", {"port": "80"}, "not a whole number: port"),
    "metadata": (_http_config, "filterConfig", {"metadata": "some"}, "metadata: must be"),
    "nested": (_http_config, "filterConfig", {"body": {"a": 1}}, "not a string: body"),
    "network": (_listener_config, "filterConfig", {"proxy_protocol_from": ["10.0.0.1/8"]}, "not a network: 10.0.0.1/8"),
    "list": (_listener_config, "filterConfig", {"proxy_protocol_from": "10.0.0.0/8"}, "not a list"),
    "flag": (_listener_config, "filterConfig", {"original_dst": "yes"}, "neither true nor false"),
    "no maps": (_listener_config, "filterConfig", {"datapath": "/nowhere"}, "datapath: /nowhere/state: No such file"),
    "two words": (
        _listener_config,
        "filterConfig",
        {"datapath": "/nowhere", "original_dst": True},
        "comes from no proxy and no other redirection",
    ),
    "no state": (_bootstrap_config, "extensionConfig", {}, "state or snapshot"),
    "two states": (_bootstrap_config, "extensionConfig", {"state": "/a", "snapshot": "/b/c"}, "state or snapshot"),
    "relative state": (_bootstrap_config, "extensionConfig", {"state": "a"}, "must be an absolute path"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_configuration_is_refused_with_the_reason(what: str, tmp_path: Path, envoy: EnvoyBinary) -> None:
    where, key, value, reason = WRONG[what]

    def edit(config) -> None:  # type: ignore[no-untyped-def]
        where(config)[key] = {"@type": "type.googleapis.com/google.protobuf.Struct", "value": value}

    assert reason in refused_config(_edit(tmp_path, edit), tmp_path, envoy)


def test_filters_without_the_bootstrap_extension_are_refused(tmp_path: Path, envoy: EnvoyBinary) -> None:
    path = _edit(tmp_path, lambda config: config.pop("bootstrapExtensions"))
    assert "the bootstrap extension of idmesh is not configured" in refused_config(path, tmp_path, envoy)


def test_a_second_bootstrap_extension_is_refused(tmp_path: Path, envoy: EnvoyBinary) -> None:
    path = _edit(tmp_path, lambda config: config["bootstrapExtensions"].append(config["bootstrapExtensions"][0]))
    assert "only one bootstrap extension" in refused_config(path, tmp_path, envoy)


def test_unknown_filter_names_are_refused(tmp_path: Path, envoy: EnvoyBinary) -> None:
    path = _edit(tmp_path, lambda config: _http_config(config).update(filterName="idmesh.x"))
    assert "filter_name: must be" in refused_config(path, tmp_path, envoy)


def test_an_upstream_filter_may_not_name_a_destination(tmp_path: Path, envoy: EnvoyBinary) -> None:
    path = _edit(tmp_path, lambda config: _http_config(config).update(filterName="idmesh.upstream"))
    assert "the chosen host is judged" in refused_config(path, tmp_path, envoy)


STEERED = {
    "steering": Steering(Path("/bpf")),
    "upstreams": (),
    "destination": "",
    "listen": parse_target("127.0.0.1:1"),
}


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"upstreams": ()}, "upstream"),
        ({"steering": Steering(Path("/bpf"))}, "bring their destination"),
        ({**STEERED, "listen": parse_target("127.0.0.2:15001")}, "arrive at 127.0.0.1"),
        ({**STEERED, "door": Door.EXT_AUTHZ, "authz": AUTHZ}, "only the module"),
        ({**STEERED, "second_point": True}, "no second choice"),
        ({**STEERED, "original_dst": True}, "come through nothing else"),
        ({"listen": parse_target("example.org:80")}, "IP address"),
        ({"state": None}, "state directory"),
        ({"module": None}, "module's path"),
        ({"door": Door.EXT_AUTHZ}, "--grpc"),
        ({"door": Door.EXT_PROC}, "--grpc"),
        ({"door": Door.EXT_PROC, "authz": AUTHZ, "mode": Mode.TCP}, "judges requests"),
        ({"door": Door.EXT_PROC, "authz": AUTHZ, "trusted_hops": 1}, "X-Forwarded-For"),
        ({"door": Door.EXT_PROC, "authz": AUTHZ, "use_remote_address": False}, "X-Forwarded-For"),
        ({"door": Door.EXT_PROC, "authz": AUTHZ, "listener_filter": True, "state": None}, "state directory"),
        ({"door": Door.EXT_AUTHZ, "authz": AUTHZ, "observe": True}, "observe"),
        ({"door": Door.NONE, "second_point": True}, "second time"),
        ({"door": Door.EXT_AUTHZ, "authz": AUTHZ, "proxy_protocol_from": ("10.0.0.0/8",)}, "trusted proxies"),
    ],
)
def test_impossible_setups_are_refused(wanted: dict[str, object], reason: str, tmp_path: Path) -> None:
    fields = {"door": Door.MODULE, "upstream": BACKEND, "state": tmp_path, **wanted}
    with pytest.raises(SetupError, match=reason):
        setup_for(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "a", "1.2.3.4", "::1:80", "[::1]", "1.2.3.4:x", "1.2.3.4:70000", "unix:a"])
def test_malformed_addresses_are_refused(text: str) -> None:
    with pytest.raises(SetupError):
        parse_target(text)


def test_the_workload_is_the_upstream_unless_that_is_this_host(tmp_path: Path) -> None:
    def found(listen: str, upstream: str) -> tuple[str, int]:
        setup = Setup(Door.NONE, parse_target(listen), (parse_target(upstream),))
        return setup.resolved_destination

    assert found("127.0.0.1:8000", "10.0.0.5:8080") == ("10.0.0.5:8080", 0)
    assert found("127.0.0.1:8000", "127.1.0.5:8080") == ("127.1.0.5:8080", 0)
    assert found("10.0.0.5:15006", "127.0.0.1:8080") == ("local", 8080)
    assert found("0.0.0.0:15006", "[::1]:8080") == ("local", 8080)
    assert found("0.0.0.0:80", "backend.example:8080") == ("local", 0)


def test_no_connection_outlives_its_certificate_by_more_than_an_hour_where_nobody_asks_again(tmp_path: Path) -> None:
    def proxy(**more: object) -> dict[str, object]:
        setup = setup_for(Door.EXT_AUTHZ, BACKEND, mode=Mode.TCP, state=tmp_path, authz=AUTHZ, **more)
        listener = json.loads(render(setup))["staticResources"]["listeners"][0]
        return listener["filterChains"][0]["filters"][-1]["typedConfig"]

    tls = Tls(tmp_path / "cert", tmp_path / "key", tmp_path / "ca")
    assert proxy(tls=tls, trust_domain="td.test")["maxDownstreamConnectionDuration"] == "3600s"
    assert "maxDownstreamConnectionDuration" not in proxy()


def test_the_command_prints_what_the_generator_makes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ext_authz.cli", "envoy", "--door", "module", "--listen", "127.0.0.1:8000"]
    command += ["--upstream", "10.0.0.5:8080", "--state", str(tmp_path), "--admin", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["staticResources"]["listeners"][0]["name"] == "idmesh"
    bad = subprocess.run([*command, "--upstream", "nonsense"], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "nonsense" in bad.stderr
