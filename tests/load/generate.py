# SPDX-License-Identifier: Apache-2.0
"""
The inputs of the benchmarks: the rule mix and the scale set of tests/load/HEAD.md, the same for the same seed.

    python -m tests.load.generate scale DIR [--policies N --endpoints N --identities N --seed N]
    python -m tests.load.generate rules DIR [--rules N --seed N]
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
OBJECTS_PER_FILE = 100
PORTS = (80, 443, 1883, 3000, 3306, 4317, 5000, 5432, 5672, 6379, 6443, 7946, 8000, 8080, 8081, 8086, 8443, 8500)
PORTS += (8888, 9000, 9042, 9090, 9092, 9200, 11211)
METHODS = ("GET", "POST", "PUT", "DELETE")
TENANT = "X-Tenant"
NAMESPACES = 50
TIERS = 8


@dataclass(frozen=True)
class Request:
    """One HTTP request of the rule mix."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()


# ---- the rule mix ----


def rule_mix(count: int) -> list[Object]:
    """HTTP rules: of ten 4 literal paths, 3 prefixes, 2 with classes or alternation, 1 with a leading wildcard."""
    return [_rule(number) for number in range(count)]


def _rule(number: int) -> Object:
    kind = number % 10
    if kind < 4:
        path = f"/static/v1/item{number}"
    elif kind < 7:
        path = f"/svc{number}/files/.*"
    elif kind == 7:
        path = f"/api/v[0-9]+/svc{number}/users/[0-9a-f-]+/orders(/.*)?"
    elif kind == 8:
        path = f"/shop/(cart|basket)/c{number}/(add|remove)"
    else:
        path = f".*/export{number}/raw"
    rule: Object = {"path": path}
    if _is_guarded(number):
        rule |= {"method": METHODS[number // 10 % 4], "headers": [f"{TENANT}: tenant{number}"]}
    return rule


def _is_guarded(number: int) -> bool:
    """A fifth of the rules; the step makes that a fifth of every kind."""
    return number // 10 % 5 == 0


def matching_request(number: int, salt: int = 0) -> Request:
    """A request that rule `number` of the mix allows; another salt gives another path where the rule leaves room."""
    kind = number % 10
    if kind < 4:
        path = f"/static/v1/item{number}"
    elif kind < 7:
        path = f"/svc{number}/files/{salt:08x}/index.html"
    elif kind == 7:
        path = f"/api/v{salt % 97}/svc{number}/users/{salt:08x}-{number:x}/orders/{salt}"
    elif kind == 8:
        path = f"/shop/{('cart', 'basket')[salt % 2]}/c{number}/{('add', 'remove')[salt // 2 % 2]}"
    else:
        path = f"/data/{salt:08x}/export{number}/raw"
    guarded = _is_guarded(number)
    method = METHODS[number // 10 % 4] if guarded else METHODS[salt % 4]
    return Request(method, path, ((TENANT, f"tenant{number}"),) if guarded else ())


def missing_request(salt: int) -> Request:
    """A request no rule of the mix allows, though it begins like many."""
    starts = ("/static/v1/item", "/svc", "/api/v1/svc", "/shop/cart/c", "/data/export")
    return Request("GET", f"{starts[salt % len(starts)]}{salt:x}/users/none/{salt:x}")


def requests(rules: int, count: int, seed: int = 1) -> Iterator[Request]:
    """Requests for a mix of `rules` rules: a quarter each hits the first rule, the last, any, none; half are new."""
    source = random.Random(seed)
    for number in range(count):
        salt = number if number % 2 else source.randrange(1 << 16)
        choice = number // 2 % 4
        if choice == 3:
            yield missing_request(salt)
        else:
            yield matching_request((0, rules - 1, source.randrange(rules))[choice], salt)


def mix_objects(count: int) -> list[Object]:
    """A world in which one endpoint, one peer and one port carry the whole mix."""
    peers = [{"matchLabels": {"app": "client"}}]
    ports = [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": rule_mix(count)}}]
    spec = {
        "endpointSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"fromEndpoints": peers, "toPorts": ports}],
    }
    return [
        _namespace("default"),
        _pod("server", "default", {"app": "server"}, "10.0.0.1"),
        _pod("client", "default", {"app": "client"}, "10.0.0.2"),
        _policy("CiliumNetworkPolicy", "mix", spec, "default"),
    ]


# ---- the scale set ----


@dataclass
class _Workload:
    """One identity of the scale set and how many endpoints share it."""

    app: str
    namespace: str
    tier: str
    replicas: int


@dataclass
class Scale:
    """What the scale set is made of; shares are of the policies."""

    policies: int = 1_000
    endpoints: int = 10_000
    identities: int = 2_000
    seed: int = 1
    everybody: float = 0.01
    http: float = 0.20
    cidr: float = 0.10
    deny: float = 0.05
    random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def workloads(self) -> list[_Workload]:
        """Identities of uneven size, together all endpoints; some have a single one."""
        per_namespace = max(4, -(-self.identities // NAMESPACES))
        found = [_Workload(f"app{n}", f"ns{n // per_namespace}", f"tier{n % TIERS}", 1) for n in range(self.identities)]
        share = 2 * self.endpoints // self.identities - 1
        left = self.endpoints - self.identities
        while left > 0:
            workload = found[self.random.randrange(len(found))]
            if workload.replicas < share or left < self.identities // 10:
                workload.replicas += 1
                left -= 1
        return found


def scale(size: Scale | None = None) -> list[Object]:
    """Namespaces, endpoints and policies of the scale set."""
    size = size or Scale()
    workloads = size.workloads()
    objects = [_namespace(name) for name in dict.fromkeys(workload.namespace for workload in workloads)]
    return objects + list(_pods(workloads)) + scale_policies(size, workloads)


def scale_policies(size: Scale, workloads: Sequence[_Workload]) -> list[Object]:
    """
    The policies alone.

    Each selects 1 to 100 endpoints (a few all of them), names 3 peers and 5 ports; shares are met exactly.
    """
    marks = {
        name: set(size.random.sample(range(size.policies), round(size.policies * share)))
        for name, share in (("all", size.everybody), ("http", size.http), ("cidr", size.cidr), ("deny", size.deny))
    }
    by_namespace: dict[str, list[_Workload]] = {}
    for workload in workloads:
        by_namespace.setdefault(workload.namespace, []).append(workload)
    found = []
    for number in range(size.policies):
        kinds = {name for name, numbers in marks.items() if number in numbers}
        found.append(_scale_policy(number, kinds, by_namespace, size.random))
    return found


def _scale_policy(
    number: int, kinds: set[str], by_namespace: dict[str, list[_Workload]], source: random.Random
) -> Object:
    namespace = source.choice(list(by_namespace))
    outward = source.random() < 0.3
    deny = "deny" in kinds
    direction = ("egress" if outward else "ingress") + ("Deny" if deny else "")
    entry = _peers("to" if outward else "from", "cidr" in kinds, by_namespace[namespace], source)
    ports: Object = {
        "ports": [{"port": str(port), "protocol": "TCP"} for port in sorted(source.sample(PORTS, 5))],
    }
    if "http" in kinds and not deny:
        ports["rules"] = {"http": _scale_rules(10 * number)}
    entry["toPorts"] = [ports]
    if "all" in kinds:
        return _policy(
            "CiliumClusterwideNetworkPolicy", f"policy{number}", {"endpointSelector": {}, direction: [entry]}
        )
    subject = _subject(by_namespace[namespace], source)
    return _policy(
        "CiliumNetworkPolicy", f"policy{number}", {"endpointSelector": subject, direction: [entry]}, namespace
    )


def _scale_rules(first: int) -> list[Object]:
    """
    Ten rules of the mix, with bounds instead of "+" and "*" in the middle.

    A hostile request may meet the rules of many policies on one port, and each unbounded class in the middle is a
    fifth of what the budget of a port allows.
    """
    rules = [_rule(number) for number in range(first, first + 10)]
    rules[7]["path"] = f"/api/v[0-9]{{1,2}}/svc{first + 7}/users/[0-9a-f]{{8}}/orders(/.*)?"
    return rules


def _subject(workloads: Sequence[_Workload], source: random.Random) -> Object:
    """A selector of 1 to 100 endpoints of one namespace."""
    wanted = source.randint(1, 100)
    if wanted < 10:
        smallest = min(workloads, key=lambda workload: abs(workload.replicas - wanted))
        return {"matchLabels": {"app": smallest.app}}
    chosen: list[str] = []
    for workload in source.sample(workloads, len(workloads)):
        if workload.replicas <= wanted:
            chosen.append(workload.app)
            wanted -= workload.replicas
    return {"matchExpressions": [{"key": "app", "operator": "In", "values": sorted(chosen)}]}


def _peers(side: str, outside: bool, workloads: Sequence[_Workload], source: random.Random) -> Object:
    if outside:
        networks = [f"10.{source.randrange(200, 256)}.{source.randrange(256)}.0/24" for _ in range(3)]
        return {f"{side}CIDR": networks}
    apps = [workload.app for workload in source.sample(workloads, 2)]
    selectors: list[Object] = [{"matchLabels": {"app": app}} for app in apps]
    selectors.append({"matchLabels": {"tier": f"tier{source.randrange(TIERS)}"}})
    return {f"{side}Endpoints": selectors}


def _pods(workloads: Iterable[_Workload]) -> Iterator[Object]:
    number = 0
    for workload in workloads:
        labels = {"app": workload.app, "tier": workload.tier}
        for replica in range(workload.replicas):
            number += 1
            address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            yield _pod(f"{workload.app}-{replica}", workload.namespace, labels, address)


# ---- objects and files ----


def _namespace(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _pod(name: str, namespace: str, labels: dict[str, str], address: str) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"podIPs": [{"ip": address}]}}


def _policy(kind: str, name: str, spec: Object, namespace: str = "") -> Object:
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec}


def write(objects: Sequence[Object], folder: Path) -> list[Path]:
    """Write YAML files of at most 100 objects each, named in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for start in range(0, len(objects), OBJECTS_PER_FILE):
        path = folder / f"objects-{start // OBJECTS_PER_FILE:04}.yaml"
        path.write_text(to_yaml(objects[start : start + OBJECTS_PER_FILE]))
        written.append(path)
    return written


def to_yaml(objects: Sequence[Object]) -> str:
    """One text of many documents."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    # Aliases would stand for values two objects share; people do not write those.
    plain = type("Plain", (dumper,), {"ignore_aliases": lambda *_: True})
    return yaml.dump_all(objects, Dumper=plain, sort_keys=False)


def main() -> int:
    """Write one of the sets into a folder."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.generate", description=__doc__)
    parser.add_argument("set", choices=("scale", "rules"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--policies", type=int, default=1_000)
    parser.add_argument("--endpoints", type=int, default=10_000)
    parser.add_argument("--identities", type=int, default=2_000)
    parser.add_argument("--rules", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    size = Scale(args.policies, args.endpoints, args.identities, args.seed)
    objects = scale(size) if args.set == "scale" else mix_objects(args.rules)
    print(f"{len(objects)} objects in {len(write(objects, args.folder))} files", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
