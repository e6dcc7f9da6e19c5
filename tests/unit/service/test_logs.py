# SPDX-License-Identifier: Apache-2.0
"""Laws of log lines: one line an event, nothing secret, nothing that a terminal would act on."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ext_authz.logs import REDACTED, Formatter, JsonFormatter, escape, event, pair


@pytest.fixture
def said() -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger, stream


def test_a_line_is_key_value(said: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = said
    event(logger, logging.INFO, "two words", revision=3, path="/a", took=0.25)
    line = stream.getvalue()
    assert 'level=info at=test msg="two words" revision=3 path=/a took=0.25' in line


@given(st.text())
def test_no_value_breaks_its_line_or_reaches_the_terminal(text: str) -> None:
    shown = pair("key", text)
    assert shown.isprintable()
    assert not set(shown) & {"\n", "\r", "\x1b", "\x00", "\x9b", "\u2028", "\u202e"}


def test_broken_utf8_is_escaped() -> None:
    assert escape(b"a\xff\x1b[31m") == "a\\xff\\x1b[31m"


@pytest.mark.parametrize("key", ["authorization", "Authorization", "cookie", "set-cookie", "proxy_authorization"])
def test_credentials_are_redacted(key: str) -> None:
    assert "hunter2" not in pair(key, "Bearer hunter2")


@pytest.mark.parametrize("text", ["Authorization: Bearer hunter2", "cookie=hunter2", "Proxy-Authorization: x hunter2"])
def test_credentials_in_a_message_are_redacted(said: tuple[logging.Logger, io.StringIO], text: str) -> None:
    logger, stream = said
    event(logger, logging.INFO, text, reason=text)
    assert "hunter2" not in stream.getvalue()


def test_query_strings_are_redacted() -> None:
    assert pair("path", "/a?token=hunter2") == 'path="/a?[redacted]"'
    assert pair("path", b"/a?token=hunter2") == 'path="/a?[redacted]"'


def test_an_exception_is_one_line(said: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = said
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        event(logger, logging.ERROR, "broke", error=True)
    assert stream.getvalue().count("\n") == 1
    assert "first\\nsecond" in stream.getvalue()


# ---- as JSON ----


def as_json(**fields: object) -> dict[str, object]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    event(logger, logging.INFO, "two words", fields=fields)
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    return dict(json.loads(line, parse_constant=lambda name: pytest.fail(name)))


def test_json_holds_the_same_fields_and_numbers_stay_numbers() -> None:
    line = as_json(revision=3, took=0.25, nothing=None, path="/a", level="high", odd=float("nan"))
    assert (line["msg"], line["level"], line["at"]) == ("two words", "info", "test")
    assert (line["revision"], line["took"], line["nothing"], line["path"]) == (3, 0.25, None, "/a")
    assert (line["level_"], line["odd"]) == ("high", "nan")


@given(st.text())
def test_no_value_breaks_a_json_line(text: str) -> None:
    assert set(as_json(key=text)) == {"time", "level", "at", "msg", "key"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("authorization", "Basic x"), ("token", 17), ("header", "Cookie: a=secret"), ("reason", b"authorization=secret")],
)
def test_json_holds_no_secret(key: str, value: object) -> None:
    shown = str(as_json(**{key: value})[key])
    assert REDACTED in shown
    assert "secret" not in shown
    assert "17" not in shown
