# SPDX-License-Identifier: Apache-2.0
"""Paths: policies match the canonical one, so Envoy must make it, and the backend must receive that same path."""

from __future__ import annotations

from collections.abc import Iterator

from ext_authz.doctor.config.finding import Finding, check, error, warning
from ext_authz.doctor.config.view import Manager, View

_WHY = "policies judge canonical paths only: clients that send another form of a path are denied, whatever it means"
_ESCAPED = ("UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD", "REJECT_REQUEST")
_ESCAPED_NUMBERS = (2, 3, 4)


@check
def normalization(view: View) -> Iterator[Finding]:
    for manager in view.managers:
        if manager.chain.doors:
            yield from _normalization(manager)


def _normalization(manager: Manager) -> Iterator[Finding]:
    node = manager.node
    for name in ("normalize_path", "merge_slashes"):
        if not node.get(name).on:
            yield error("path-normalization", node.get(name), f"{name} is not true", _WHY, f"set {name}: true")
    action = node.get("path_with_escaped_slashes_action")
    if action.value not in (*_ESCAPED, *_ESCAPED_NUMBERS):
        said = f"path_with_escaped_slashes_action is {action.value or 'not set'}: %2F stays in paths"
        remedy = "set path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT"
        yield error("path-normalization", action, said, _WHY, remedy)
    if node.get("path_normalization_options"):
        what = "path_normalization_options can give filters another path than the backend"
        why = "then the path that is judged is not the one that is served"
        remedy = "leave it out: normalize_path and merge_slashes change the path for both"
        yield error("path-normalization", node.get("path_normalization_options"), what, why, remedy)


_REWRITES = ("prefix_rewrite", "regex_rewrite", "path_rewrite_policy", "path_rewrite")


@check
def route_rewrites(view: View) -> Iterator[Finding]:
    asked = any(chain.doors for chain in view.http_chains) or not view.listeners
    if not asked or any(chain.doors for chain in view.upstream):
        return
    for routes in view.routes:
        for name, node in routes.walk():
            for field in _REWRITES:
                found = node.get(field)
                if name == "route" and found:
                    what = f"{field} changes the path after it was judged"
                    why = "policies judge the path as the client sent it, the backend serves another one"
                    remedy = "write policies for the client's path, or judge again at the second point (--second-point)"
                    yield warning("route-rewrite", found, what, why, remedy)
