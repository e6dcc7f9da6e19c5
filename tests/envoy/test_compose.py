# SPDX-License-Identifier: Apache-2.0
"""The structure of envoy/compose.yaml; nothing here runs Docker."""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy_harness import MODULE, ROOT

from ext_authz.doctor.config.judge import judge
from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.bootstrap import render

FOLDER = ROOT / "envoy"
STACK: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = STACK["services"]


def mounts(service: str) -> dict[str, str]:
    """Place in the container to what is mounted there."""
    found = [item.split(":") for item in SERVICES[service].get("volumes", ())]
    return {parts[1]: parts[0] for parts in found}


def address(service: str) -> str:
    return str(SERVICES[service]["networks"]["mesh"]["ipv4_address"])


def test_the_configuration_is_what_the_generator_writes() -> None:
    from test_examples import generate

    assert generate.COMPOSE.read_text() == render(generate.compose())
    assert judge(generate.COMPOSE.read_bytes()) == []


def test_every_key_is_composes_own() -> None:
    assert set(STACK) == {"name", "services", "volumes", "networks"}
    known = {"image", "command", "environment", "volumes", "depends_on", "healthcheck", "networks"}
    for service in SERVICES.values():
        assert set(service) <= known
        assert {"image", "command", "networks"} <= set(service)
        assert set(service.get("depends_on", ())) <= set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_mounted_is_there(service: str) -> None:
    for source in mounts(service).values():
        if source.startswith("."):
            assert (FOLDER / source).exists() or source == "../dist"  # make wheel makes that one
        else:
            assert source in STACK["volumes"]


def test_the_node_and_envoy_share_state_and_module() -> None:
    config = json.loads((FOLDER / "compose/envoy.json").read_text())
    value = config["bootstrapExtensions"][0]["typedConfig"]
    state = value["extensionConfig"]["value"]["state"]
    module = value["dynamicModuleConfig"]["module"]["local"]["filename"]
    assert mounts("node")[state] == mounts("envoy")[state]
    command = SERVICES["node"]["command"][-1]
    assert f"--state {state} " in command
    assert module in command
    assert mounts("node")["/usr/lib/idmesh"] == mounts("envoy")["/usr/lib/idmesh"] == "module"
    assert module.startswith("/usr/lib/idmesh/")


def test_addresses_agree_with_endpoints_and_configuration() -> None:
    network = ip_network(STACK["networks"]["mesh"]["ipam"]["config"][0]["subnet"])
    all_addresses = [address(service) for service in SERVICES]
    assert len(set(all_addresses)) == len(all_addresses)
    assert all(ip_address(one) in network for one in all_addresses)
    pods = list(yaml.safe_load_all((FOLDER / "compose/endpoints.yaml").read_text()))
    said = {pod["metadata"]["name"]: pod["status"]["podIPs"][0]["ip"] for pod in pods}
    assert said == {"web": address("web"), "shop": address("shop")}
    text = (FOLDER / "compose/envoy.json").read_text()
    assert f'"address": "{address("web")}"' in text
    assert f"http://{address('envoy')}:8080/api/" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize(("path", "said"), [("/api/", 0), ("/admin", 1)])
def test_the_policy_says_what_the_reference_says_of_it(path: str, said: int) -> None:
    command = [sys.executable, "-m", "ext_authz.cli", "explain", str(FOLDER / "compose/policy.yaml")]
    command += [str(FOLDER / "compose/endpoints.yaml"), "--from", "default/shop", "--to", "default/web"]
    done = subprocess.run([*command, "--port", "9000", "--http", f"GET web{path}"], capture_output=True, check=False)
    assert done.returncode == said


def test_envoy_accepts_the_configuration(envoy: EnvoyBinary, tmp_path: Path) -> None:
    config = tmp_path / "envoy.json"
    text = (FOLDER / "compose/envoy.json").read_text()
    config.write_text(text.replace("/usr/lib/idmesh/0.1.0/libidmesh_envoy.so", str(MODULE)))
    command = [envoy.path, "--mode", "validate", "-c", config]
    said = subprocess.run(command, env=envoy.environment(MODULE), capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr[-2000:]
