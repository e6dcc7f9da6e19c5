# SPDX-License-Identifier: Apache-2.0
"""
Which flows a client wants to see: conditions of one filter must all hold, one of several filters is enough.

Filters see a flow as it is shown, so that nobody can search for what is redacted.

Source: protos/idmesh/v1/node.proto FlowFilter
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import re2

from ext_authz.flow.facts import End, Facts
from ext_authz.flow.record import DOORS
from ext_authz.flow.selectors import SelectorError, parse_selector
from ext_authz.flow.shape import DROP_REASONS

Condition = Callable[[Facts], bool]
VERDICTS = ("FORWARDED", "DROPPED", "AUDIT", "REDIRECTED", "ERROR")
_PATTERN_MAX = 4096
_VALUES_MAX = 256
# What one client may have the observer hold and try on every flow.
FILTERS_MAX = 64
_PATTERN_BYTES = 1 << 20


class FilterError(ValueError):
    """A condition does not read as it should; the message names it."""


def make_filter(whitelist: Iterable[Any], blacklist: Iterable[Any] = ()) -> Condition | None:
    """
    One condition of FlowFilter messages; None if everything passes.

    Raises:
        FilterError: A filter is not understood.
    """
    white, black = list(whitelist), list(blacklist)
    if len(white) + len(black) > FILTERS_MAX:
        raise FilterError(f"more than {FILTERS_MAX} filters")
    wanted = [_conditions(message) for message in white]
    unwanted = [_conditions(message) for message in black]
    if not wanted and not unwanted:
        return None

    def passes(facts: Facts) -> bool:
        if wanted and not any(all(holds(facts) for holds in conditions) for conditions in wanted):
            return False
        return not any(all(holds(facts) for holds in conditions) for conditions in unwanted)

    return passes


def _conditions(message: Any) -> list[Condition]:
    """The conditions of one filter; an empty one holds for every flow."""
    made: list[Condition] = []
    for field, make in _FIELDS.items():
        value = getattr(message, field)
        if not value:
            continue
        if not isinstance(value, str) and len(value) > _VALUES_MAX:
            raise FilterError(f"{field}: more than {_VALUES_MAX} values")
        made.append(make(value))
    return made


def _verdict(values: Sequence[str]) -> Condition:
    names = {value.upper() for value in values}
    if unknown := names.difference(VERDICTS):
        raise FilterError(f"verdict {min(unknown)}: must be one of {', '.join(VERDICTS)}")
    return lambda facts: facts.verdict in names


def _door(values: Sequence[str]) -> Condition:
    names = {value.lower() for value in values}
    if unknown := names.difference(DOORS.values()):
        raise FilterError(f"door {min(unknown)}: must be one of {', '.join(DOORS.values())}")
    return lambda facts: facts.door in names


def _drop_reason(values: Sequence[str]) -> Condition:
    numbers = {str(number): name for number, name in DROP_REASONS.items()}
    names = {numbers.get(value, value.upper()) for value in values}
    if unknown := names.difference(DROP_REASONS.values()):
        raise FilterError(f"drop reason {min(unknown)}: must be one of {', '.join(DROP_REASONS.values())}")
    return lambda facts: facts.drop_reason in names


def _namespace(values: Sequence[str]) -> Condition:
    names = set(values)
    return lambda facts: facts.source.namespace in names or facts.destination.namespace in names


def _label(values: Sequence[str]) -> Condition:
    try:
        selectors = [parse_selector(value) for value in values]
    except SelectorError as error:
        raise FilterError(f"label: {error}") from None
    return lambda facts: any(selects(end.labels) for selects in selectors for end in (facts.source, facts.destination))


def _path(value: str) -> Condition:
    if len(value) > _PATTERN_MAX:
        raise FilterError("path: the expression is too long")
    options = re2.Options()
    options.max_mem = _PATTERN_BYTES
    options.log_errors = False  # it would write the client's text to our log as it is
    try:
        pattern = re2.compile(value, options)
    except (re2.error, UnicodeError) as error:
        raise FilterError(f"path {value!r}: {error}") from None
    return lambda facts: bool(facts.path) and pattern.search(facts.path) is not None


def _status(values: Sequence[str]) -> Condition:
    """ "404", or "5+" and "40+" for what begins so."""
    whole = {value for value in values if not value.endswith("+")}
    begins = tuple(value[:-1] for value in values if value.endswith("+"))
    for digits in (*whole, *begins):
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 3):
            raise FilterError(f"status {digits!r}: must be a number, or its beginning and +")
    return lambda facts: bool(facts.status) and (str(facts.status) in whole or str(facts.status).startswith(begins))


def _uuid(values: Sequence[str]) -> Condition:
    ids = {value.replace("-", "").lower() for value in values}
    return lambda facts: facts.uuid in ids


def _method(values: Sequence[str]) -> Condition:
    names = {value.upper() for value in values}
    return lambda facts: facts.method.upper() in names


def is_pod(end: End, begins: str) -> bool:
    """True if NAMESPACE/NAME, or without a slash the name, begins with the text."""
    if not end.pod:
        return bool(end.namespace) and begins == f"{end.namespace}/"
    return f"{end.namespace}/{end.pod}".startswith(begins) or ("/" not in begins and end.pod.startswith(begins))


def _from_pod(values: Sequence[str]) -> Condition:
    return lambda facts: any(is_pod(facts.source, value) for value in values)


def _to_pod(values: Sequence[str]) -> Condition:
    return lambda facts: any(is_pod(facts.destination, value) for value in values)


def _pod(values: Sequence[str]) -> Condition:
    return lambda facts: any(is_pod(facts.source, value) or is_pod(facts.destination, value) for value in values)


def _port(values: Sequence[int]) -> Condition:
    ports = set(values)
    return lambda facts: not ports.isdisjoint(facts.ports)


def _identity(values: Sequence[int]) -> Condition:
    numbers = set(values)
    return lambda facts: facts.source.identity in numbers or facts.destination.identity in numbers


_FIELDS: dict[str, Callable[[Any], Condition]] = {
    "verdict": _verdict,
    "uuid": _uuid,
    "door": _door,
    "drop_reason": _drop_reason,
    "status": _status,
    "method": _method,
    "port": _port,
    "identity": _identity,
    "namespace": _namespace,
    "from_pod": _from_pod,
    "to_pod": _to_pod,
    "pod": _pod,
    "label": _label,
    "path": _path,
}
