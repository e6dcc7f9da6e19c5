# SPDX-License-Identifier: Apache-2.0
"""envoy/README.md says what the code reads: no field, key, stat, check or example is missing there, or too many."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from envoy_data_plane.envoy.extensions.dynamic_modules.v3 import DynamicModuleConfig
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz as HttpExtAuthz
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import ExternalProcessor
from envoy_data_plane.envoy.extensions.filters.network.ext_authz.v3 import ExtAuthz as NetworkExtAuthz
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpConnectionManager
from envoy_harness import ROOT

from ext_authz.doctor.config import checks_disabled, checks_module, checks_service
from ext_authz.xds.tls import REPORT

README = (ROOT / "envoy/README.md").read_text()
NATIVE = ROOT / "native/envoy"
EXAMPLES = ROOT / "envoy/examples"


def section(title: str) -> str:
    """The text under a heading, down to the next of its rank or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$", README, re.MULTILINE)
    assert found, f"no heading {title}"
    rest = README[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(title: str) -> dict[str, list[str]]:
    """First column to the others; of several tables under a heading all rows, once each."""
    found: dict[str, list[str]] = {}
    for line in section(title).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        for name in re.findall(r"`([^`]+)`", cells[0]) if line.startswith("| `") else ():
            assert name not in found, f"{title}: {name} stands twice"
            found[name] = cells[1:]
    return found


# ---- our own filters ----

_READ = re.compile(r'\{"(\w+)", JSON_(\w+),')
_TYPES = {"TEXT": "string", "NUMBER": "number", "FLAG": "bool", "LIST": "list"}
_DOORS = "HTTP, upstream HTTP and network filter"


def read_by(name: str) -> dict[str, str]:
    """Fields and types that a C file takes from JSON."""
    return {field: _TYPES[kind] for field, kind in _READ.findall((NATIVE / f"{name}.c").read_text())}


@pytest.mark.parametrize(
    ("file", "title", "doctor"),
    [
        ("bootstrap", "Bootstrap extension", checks_module.BOOTSTRAP),
        ("listener", "Listener filter", checks_module.LISTENER),
        ("door", _DOORS, checks_module.DOOR),
    ],
)
def test_every_field_of_the_module_is_described_with_its_type(file: str, title: str, doctor: dict[str, str]) -> None:
    fields = read_by(file)
    assert fields
    described = {name: cells[0] for name, cells in rows(title).items() if not name.startswith("idmesh")}
    assert described == fields
    assert {name: {"text": "string", "flag": "bool"}.get(kind, kind) for name, kind in doctor.items()} == fields


def test_no_other_file_of_the_module_reads_fields() -> None:
    readers = {path.stem for path in NATIVE.glob("*.c") if _READ.search(path.read_text())}
    assert readers == {"bootstrap", "listener", "door"}


def test_every_name_of_a_filter_is_described() -> None:
    text = (NATIVE / "http.c").read_text() + (NATIVE / "network.c").read_text()
    assert set(re.findall(r'"(idmesh\.(?:upstream|empty|handshake|follow))"', text)) == {
        "idmesh.upstream",
        "idmesh.empty",
        "idmesh.handshake",
        "idmesh.follow",
    }
    for name in ("idmesh", "idmesh.upstream", "idmesh.empty", "idmesh.handshake", "idmesh.follow"):
        assert f"| `{name}` |" in section(_DOORS)


def test_every_stat_is_described() -> None:
    bootstrap = (NATIVE / "bootstrap.c").read_text()
    defined = set(re.findall(r'define_(?:gauge|counter)\)\(envoy, IDM_TEXT\("(\w+)"\)', bootstrap))
    assert defined
    counted = set(re.findall(r'\[COUNT_\w+\] = \{"(\w+)"', (NATIVE / "counters.h").read_text()))
    assert counted
    assert {f"idmesh.{name}" for name in defined | counted} == set(rows("Statistics"))


def test_every_key_of_metadata_is_described() -> None:
    module = set(re.findall(r'\badd\w*\(re\w+, IDM_TEXT\("(\w+)"\)', (NATIVE / "report.c").read_text()))
    service = (ROOT / "native/service/metadata.c").read_text()
    told = set(re.findall(r'(?:put_text|put_decimal|join_open)\(writer, BYTES\("(\w+)"\)', service))
    described = set(rows("Dynamic metadata"))
    assert module == described - {"auth", "error"}
    assert told == described


# ---- the services ----


def test_every_word_of_initial_metadata_is_described() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "ext_authz/service").glob("*.py"))
    read = set(re.findall(r'"(idmesh-[a-z-]+)"', code)) - {"idmesh-worker", "idmesh-bare"}
    described = rows("gRPC initial metadata")
    assert set(described) == read == set(checks_service.WORDS)
    assert described["idmesh-certificate"][0] == f"`{REPORT}`"


def test_every_context_extension_is_described() -> None:
    read = set(
        re.findall(r'fields_equal\(pair\.key, "(idmesh[^"]+)"', (ROOT / "native/service/authz_request.c").read_text())
    )
    assert read == {checks_disabled.DESTINATION}
    assert f"`{checks_disabled.DESTINATION}`" in section("ext_authz, HTTP")


def filters(kind: str) -> Iterator[dict[str, Any]]:
    """Configurations of one type in the committed examples."""

    def walk(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            if str(value.get("@type", "")).endswith(kind):
                yield value
            for item in value.values():
                yield from walk(item)
        elif isinstance(value, list):
            for item in value:
                yield from walk(item)

    for path in sorted(EXAMPLES.glob("*.json")):
        yield from walk(json.loads(path.read_text()))


def snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


@pytest.mark.parametrize(
    ("title", "message", "kind"),
    [
        ("ext_authz, HTTP", HttpExtAuthz, "filters.http.ext_authz.v3.ExtAuthz"),
        ("ext_authz, network", NetworkExtAuthz, "filters.network.ext_authz.v3.ExtAuthz"),
        ("ext_proc", ExternalProcessor, "filters.http.ext_proc.v3.ExternalProcessor"),
    ],
)
def test_every_field_that_we_generate_is_described_and_every_one_described_is_envoys(
    title: str, message: type, kind: str
) -> None:
    described = set(rows(title))
    assert described <= set(message.__dataclass_fields__)  # type: ignore[attr-defined]
    found = list(filters(kind))
    assert found
    for config in found:
        assert {snake(name) for name in config if name != "@type"} <= described


def test_every_described_field_of_the_connection_manager_is_envoys() -> None:
    described = set(rows("Connection manager")) - {"timeout"}
    assert described <= set(HttpConnectionManager.__dataclass_fields__)


def test_every_described_field_of_a_modules_file_is_envoys() -> None:
    described = {name.partition(".")[0] for name in rows("Loading it")}
    assert described <= set(DynamicModuleConfig.__dataclass_fields__)


# ---- checks, examples, snippets ----


def test_every_check_of_doctor_is_described() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "ext_authz/doctor/config").glob("*.py"))
    checks = set(re.findall(r'\b(?:error|warning)\(\s*"([a-z-]+)"', code)) - {"doctor"}
    assert set(rows("Mistakes people make")) == checks


def test_every_example_is_described_and_none_that_is_not_there() -> None:
    there = {path.name for path in EXAMPLES.glob("*.json")}
    assert set(rows("Examples")) == there
    assert set(re.findall(r"`examples/([a-z-]+\.json)`", README)) <= there


def test_every_snippet_is_json() -> None:
    snippets = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert snippets
    for text in snippets:
        json.loads("{" + text + "}")


def test_every_link_within_leads_somewhere() -> None:
    titles = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
