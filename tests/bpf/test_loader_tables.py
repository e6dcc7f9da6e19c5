# SPDX-License-Identifier: Apache-2.0
"""
What the loader writes is what the engine says: every identity, direction and telling port of random worlds, read back
from the kernel after each of many revisions in the same two slots.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from ext_authz.datapath import Datapath
from ext_authz.datapath.layout import NO_INDEX
from ext_authz.engine.layout import ENDPOINT_LOCAL, IdentitiesSection, TableKind
from tests.agreement.compare import OVER_BUDGET, Product
from tests.agreement.generate import Generator
from tests.bpf.loader_objects import build
from tests.bpf.loader_tables import Tables, engine_says, items, policy_of, questions

SIZES = {"endpoints": 4096, "prefixes": 4096, "sides": 256, "peers": 8192, "spans": 16384, "connections": 1024}
SCENARIOS = int(os.environ.get("IDMESH_LOADER_SCENARIOS", "8"))
FIRST = int(os.environ.get("IDMESH_AGREEMENT_SEED", "0"))
ASKED = 3000


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("objects"))


@pytest.fixture
def datapath(folder: Path, objects: Path) -> Iterator[Datapath]:
    made = Datapath.open(folder / "bpf", objects, SIZES)
    yield made
    made.cleanup()


def scenarios() -> Iterator[Product]:
    seed = FIRST
    for _ in range(SCENARIOS):
        while True:
            seed += 1
            made = Product(Generator(seed).scenario, ())
            if not any(OVER_BUDGET in error.reason for error in made.compiled.errors):
                break
        yield made


def addresses(product: Product) -> Iterator[str]:
    """Both sides of every boundary between ranges, and every exact address."""
    for family, make in ((4, IPv4Address), (6, IPv6Address)):
        section = IdentitiesSection.RANGES4 if family == 4 else IdentitiesSection.RANGES6
        for one in items(product.engine, TableKind.IDENTITIES, section, f"idm_range{family}"):
            first = int.from_bytes(one["first"], "big")
            yield from (str(make(first + step)) for step in (0, 1, -1) if first + step >= 0)
    for host in items(product.engine, TableKind.IDENTITIES, IdentitiesSection.HOSTS, "idm_host"):
        if host["family"]:
            yield str(IPv4Address(host["address"][:4]) if host["family"] == 4 else IPv6Address(host["address"]))


def test_the_kernels_lists_say_what_the_engine_decides(datapath: Datapath) -> None:
    answers, spared = set(), random.Random(FIRST)
    for product in scenarios():
        datapath.publish(product.compiled.snapshot)
        tables, engine = Tables(datapath), product.engine
        policies = {index: policy_of(tables, index) for index in range(len(engine.endpoints))}
        placed = {row["endpoint"] for row in tables.endpoints.values()}
        ends = items(engine, TableKind.IDENTITIES, IdentitiesSection.ENDPOINTS, "idm_endpoint")
        for row in tables.endpoints.values():
            assert row["flags"] == (row["endpoint"] != NO_INDEX and ends[row["endpoint"]]["flags"] & ENDPOINT_LOCAL)
        every = [asked for asked in questions(engine) if asked.endpoint in placed]
        for asked in spared.sample(every, min(len(every), ASKED)):
            wanted = engine_says(engine, asked)
            got = tables.judge(policies[asked.endpoint], asked.direction, asked.identity, asked.protocol, asked.port)
            assert got == wanted, (product.built, asked)
            answers.add(wanted[:2])
    # The worlds were worth asking about: passing, both denials, steering.
    assert {(1, 0), (2, 133), (2, 181), (5, 0)} <= answers


def test_addresses_have_the_identity_that_the_engine_resolves(datapath: Datapath) -> None:
    for product in scenarios():
        datapath.publish(product.compiled.snapshot)
        tables = Tables(datapath)
        for address in addresses(product):
            assert tables.identity(address) == product.engine.resolve(address)[0], address


def test_a_revision_again_costs_only_the_word(datapath: Datapath) -> None:
    """Both slots hold it after two publications: the third finds nothing to write."""
    product = next(scenarios())
    reports = [datapath.publish(product.compiled.snapshot) for _ in range(3)]
    # The lists of ports stand there once, for both.
    assert reports[0].written == reports[1].written + reports[1].spans > reports[1].written > 0
    assert (reports[2].written, reports[2].deleted) == (0, 0)
    assert [report.generation for report in reports] == [1, 2, 3]
