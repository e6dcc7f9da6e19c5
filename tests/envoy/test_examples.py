# SPDX-License-Identifier: Apache-2.0
"""The committed examples are what the generator writes, and Envoy accepts them."""

from __future__ import annotations

import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from envoy_harness import MODULE

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.bootstrap import render

# `import envoy` would find Envoy's own messages.
_SPEC = spec_from_file_location("idmesh_envoy_generate", Path(__file__).resolve().parents[2] / "envoy/generate.py")
assert _SPEC
assert _SPEC.loader
generate = module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate)


@pytest.mark.parametrize("name", sorted(generate.examples()))
def test_a_committed_example_is_what_the_generator_writes(name: str) -> None:
    assert (generate.EXAMPLES / f"{name}.json").read_text() == render(generate.examples()[name])


def test_there_is_no_example_but_those() -> None:
    assert {path.stem for path in generate.EXAMPLES.iterdir()} == set(generate.examples())


@pytest.mark.parametrize("name", sorted(generate.examples()))
def test_envoy_accepts_an_example(name: str, envoy: EnvoyBinary, tmp_path: Path) -> None:
    config = tmp_path / "envoy.json"
    config.write_text(render(generate.examples(tmp_path / "state", MODULE)[name]))
    said = subprocess.run(
        [envoy.path, "--mode", "validate", "-c", config], env=envoy.environment(MODULE), capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr[-2000:]
