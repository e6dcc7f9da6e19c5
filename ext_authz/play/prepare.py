# SPDX-License-Identifier: Apache-2.0
"""A case compiled, or the reason it is refused; and documents that must be refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ext_authz.casefile import Case, CaseError, InvalidCase, Raw
from ext_authz.compiler.check import check_world
from ext_authz.compiler.compile import Compiler
from ext_authz.model.types import PolicyError
from ext_authz.play.results import Outcome
from ext_authz.play.world import Built, build


@dataclass(frozen=True, slots=True)
class Prepared:
    """One case ready to be played."""

    case: Case
    built: Built
    snapshot: bytes
    revision: int


def prepare(case: Case, compiler: Compiler) -> Prepared | PolicyError:
    """Compile a case; the first error refuses it."""
    built = _build(case)
    if built.errors:
        return built.errors[0]
    compiled = compiler.compile(built.world)
    if compiled.errors:
        return compiled.errors[0]
    return Prepared(case, built, compiled.snapshot, compiled.revision)


def refusal(case: InvalidCase) -> PolicyError | None:
    """
    The first reason to refuse these documents, None if they are accepted.

    Combinations are judged for the endpoints there are, and as rules alone, as `idmesh validate` does without any.
    """
    built = _build(case)
    if built.errors:
        return built.errors[0]
    for world in (built.world, replace(built.world, endpoints=())):
        errors, _ = check_world(world)
        if errors:
            return errors[0]
    return None


def _build(case: Case | InvalidCase) -> Built:
    try:
        return build(case)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CaseError(f"{case.file}: case {case.id}: {error}") from error


def refused(error: PolicyError | None) -> Raw:
    """What came of documents that must be refused."""
    if error is None:
        return {"expect": "accept", "field": None, "line": None, "reason": None}
    return {"expect": "refuse", "field": error.field, "line": error.origin.line, "reason": error.reason}


def refused_probes(case: Case, error: PolicyError) -> Sequence[Outcome]:
    """A case that should be played and is refused fails at every probe."""
    return [Outcome(got=refused(error)) for _ in case.probes]
