# SPDX-License-Identifier: Apache-2.0
"""Laws of the benchmark inputs: the shares benchmarks promise, and the same files for the same seed."""

import re

import yaml

from tests.load.generate import (
    OBJECTS_PER_FILE,
    Scale,
    matching_request,
    missing_request,
    requests,
    rule_mix,
    scale,
    write,
)

SMALL = {"policies": 200, "endpoints": 1000, "identities": 200}


def test_equal_seeds_give_equal_sets():
    assert scale(Scale(**SMALL)) == scale(Scale(**SMALL))
    assert scale(Scale(**SMALL)) != scale(Scale(**SMALL, seed=2))
    assert list(requests(100, 50)) == list(requests(100, 50))


def test_the_mix_has_the_promised_shares():
    rules = rule_mix(1000)
    kinds = [path_kind(rule["path"]) for rule in rules]
    assert [kinds.count(kind) for kind in ("literal", "prefix", "middle", "leading")] == [400, 300, 200, 100]
    assert sum("headers" in rule and "method" in rule for rule in rules) == 200


def path_kind(path):
    if re.fullmatch(r"[\w/]+", path):
        return "literal"
    if path.startswith(".*"):
        return "leading"
    return "prefix" if re.fullmatch(r"[\w/]+\.\*", path) else "middle"


def test_requests_match_their_rule_and_only_theirs():
    rules = rule_mix(100)
    for number in range(100):
        for salt in (0, 1, 12345):
            request = matching_request(number, salt)
            assert [n for n, rule in enumerate(rules) if allows(rule, request)] == [number]


def test_missing_requests_match_no_rule():
    rules = rule_mix(200)
    assert not any(allows(rule, missing_request(salt)) for rule in rules for salt in range(50))


def allows(rule, request):
    headers = [f"{name}: {value}" for name, value in request.headers]
    fits = re.fullmatch(rule["path"], request.path) and rule.get("method", request.method) == request.method
    return bool(fits) and all(header in headers for header in rule.get("headers", []))


def test_the_scale_set_has_the_promised_size_and_shares():
    objects = scale(Scale(**SMALL))
    pods = [o for o in objects if o["kind"] == "Pod"]
    policies = [o for o in objects if o["kind"].startswith("Cilium")]
    assert (len(pods), len(policies)) == (1000, 200)
    assert len({tuple(sorted(pod["metadata"]["labels"].items())) for pod in pods}) == 200
    assert len({pod["status"]["podIPs"][0]["ip"] for pod in pods}) == 1000
    assert sum(o["spec"]["endpointSelector"] == {} for o in policies) == 2
    assert sum(any("CIDR" in key for entry in entries(o) for key in entry) for o in policies) == 20
    assert sum(any(key.endswith("Deny") for key in o["spec"]) for o in policies) == 10
    assert all(len(entry["toPorts"][0]["ports"]) == 5 for o in policies for entry in entries(o))
    http = [o for o in policies if any("rules" in entry["toPorts"][0] for entry in entries(o))]
    assert 30 <= len(http) <= 40


def entries(policy):
    return [entry for key, found in policy["spec"].items() if key != "endpointSelector" for entry in found]


def test_files_hold_at_most_100_objects_and_read_back(tmp_path):
    objects = scale(Scale(policies=50, endpoints=300, identities=60))
    read = [list(yaml.safe_load_all(path.read_text())) for path in write(objects, tmp_path)]
    assert max(map(len, read)) <= OBJECTS_PER_FILE
    assert [item for file in read for item in file] == objects
