# SPDX-License-Identifier: Apache-2.0
"""
Log lines as key=value, or as JSON: one line an event, control bytes escaped, secrets never written.

What a client sends can reach a log (a path, a header), so every value is escaped here and nowhere else: a line
can be neither split nor coloured by what it quotes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

FORMATS = ("text", "json")
FORMAT_VARIABLE = "IDMESH_LOG_FORMAT"  # read by every process of ours, so that a node's log is of one kind
REDACTED = "[redacted]"
_SECRET_KEYS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "password", "token", "secret"}
)
_PATH_KEYS = frozenset({"path", "url", "uri", "target"})
_SECRET_TEXT = re.compile(r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie)\b(\s*[:=]\s*).*")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,\[\]-]+")


def escape(value: object) -> str:
    """Text of a value on one line, safe for a terminal. Bytes that are no UTF-8 appear as \\xNN."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    if text.isprintable():
        return text
    # Controls, separators, what turns the direction of text, lone surrogates: whatever is not seen as itself.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def redact(key: str, value: object) -> object:
    """The value as it may be written: no credentials, no query strings."""
    name = key.lower().replace("_", "-")
    if name in _SECRET_KEYS:
        return REDACTED
    if name in _PATH_KEYS:
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
        head, mark, _ = text.partition("?")
        return f"{head}?{REDACTED}" if mark else head
    return value


def pair(key: str, value: object) -> str:
    """key=value; quoted unless the value is one plain word."""
    text = _clean(key, value)
    if not _PLAIN.fullmatch(text):
        text = '"' + escape(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'
    return f"{key}={text}"


def _clean(key: str, value: object) -> str:
    if isinstance(value, float):
        value = f"{value:.6g}"
    value = redact(key, value)
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return _SECRET_TEXT.sub(rf"\1\2{REDACTED}", text)


class Formatter(logging.Formatter):
    """`time=... level=info at=ext_authz.agent msg="..." key=value ...`; fields come from `event`."""

    def format(self, record: logging.LogRecord) -> str:
        message = _clean("msg", record.getMessage())
        parts = [
            f"time={_stamp(record)}",
            f"level={record.levelname.lower()}",
            pair("at", record.name),
            pair("msg", message),
        ]
        parts += [pair(key, value) for key, value in getattr(record, "fields", {}).items()]
        if record.exc_info and record.exc_info[0]:
            parts += [pair("error", f"{record.exc_info[0].__name__}: {record.exc_info[1]}"), _where(record.exc_info[2])]
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """The same fields as a JSON object; numbers stay numbers."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "at": record.name,
            "msg": _clean("msg", record.getMessage()),
        }
        for key, value in getattr(record, "fields", {}).items():
            plain = isinstance(value, int | float) and math.isfinite(value) and redact(key, value) == value
            line[key if key not in line else f"{key}_"] = value if plain or value is None else _clean(key, value)
        if record.exc_info and record.exc_info[0]:
            line["error"] = _clean("error", f"{record.exc_info[0].__name__}: {record.exc_info[1]}")
            line["trace"] = _frames(record.exc_info[2])
        return json.dumps(line)


def _stamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _where(trace: Any) -> str:
    return pair("trace", _frames(trace))


def _frames(trace: Any) -> str:
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return ">".join(frames[-6:])


def event(
    logger: logging.Logger,
    level: int,
    message: str,
    *,
    error: bool = False,
    fields: Mapping[str, object] | None = None,
    **more: object,
) -> None:
    """Log a message with fields; with `error` also the exception that is being handled."""
    if logger.isEnabledFor(level):
        logger.log(level, message, exc_info=error, extra={"fields": {**(fields or {}), **more}})


def install(level: int | str = logging.INFO) -> None:
    """Make every logger of this process write such lines to stderr; $IDMESH_LOG_FORMAT=json: as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if os.environ.get(FORMAT_VARIABLE) == "json" else Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
