# SPDX-License-Identifier: Apache-2.0
"""
What clients sent as JSON text: always valid, always ASCII, and without what may not be shown.

Bytes that are no UTF-8 appear as \\xNN. Redaction is the default: query strings and fragments, user information of
hosts, and the headers whose names speak of credentials, each replaced by Hubble's word for it.
"""

from __future__ import annotations

import re
from json.encoder import encode_basestring_ascii as _quoted

REDACTED = "HUBBLE_REDACTED"
# Parts of a header's name that say what its value is for: x-api-key, x-vault-token, x-amz-security-token.
_SECRET_WORDS = frozenset(
    {"apikey", "assertion", "auth", "authentication", "authorization", "bearer", "cert", "cookie", "cookie2",
     "credential", "credentials", "csrf", "jwt", "key", "otp", "passwd", "password", "pwd", "secret", "session",
     "sessionid", "sid", "signature", "sso", "token", "xsrf", "csrftoken", "xsrftoken"}
)  # fmt: skip
_WORD = re.compile(r"[a-z0-9]+")
_URL_HEADERS = frozenset({"referer", "location", "origin", ":path", "x-envoy-original-path", "x-original-url"})
_WORDS_MAX = 4096


def decode(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def quoted(text: str) -> str:
    """A JSON string."""
    return _quoted(text)


def redact_path(path: str) -> str:
    """Without query, fragment, and the user information of an absolute form; that there was one stays visible."""
    for mark in "?#":
        if mark in path:
            path = f"{path[: path.index(mark)]}{mark}{REDACTED}"
    if "@" in path and path[0] != "/":
        scheme = next((start for start in ("http://", "https://") if path.startswith(start)), "")
        return scheme + redact_host(path[len(scheme) :])
    return path


def redact_host(host: str) -> str:
    """Without user information, which an authority may carry."""
    _, at, rest = host.rpartition("@")
    return f"{REDACTED}@{rest}" if at else host


def redact_header(name: str, value: str) -> str:
    lower = name.lower()
    if not _SECRET_WORDS.isdisjoint(_WORD.findall(lower)):
        return REDACTED
    return redact_path(value) if lower in _URL_HEADERS else value


class Words:
    """Texts that come again and again (methods, hosts), decoded, redacted and escaped once; without quotes."""

    def __init__(self, redact: bool) -> None:
        self._redact = redact
        self._known: dict[bytes, str] = {}
        self._hosts: dict[bytes, str] = {}

    def word(self, data: bytes) -> str:
        known = self._known.get(data)
        if known is None:
            known = _keep(self._known, data, quoted(decode(data))[1:-1])
        return known

    def host(self, data: bytes) -> str:
        known = self._hosts.get(data)
        if known is None:
            text = decode(data)
            known = _keep(self._hosts, data, quoted(redact_host(text) if self._redact else text)[1:-1])
        return known

    def path(self, data: bytes) -> str:
        """The path as text, not yet escaped."""
        text = decode(data)
        return redact_path(text) if self._redact else text

    def headers(self, lines: list[tuple[bytes, bytes]]) -> str:
        """[{"key": ..., "value": ...}, ...]"""
        made = []
        for name, value in lines:
            key, text = decode(name), decode(value)
            made.append(f'{{"key":{quoted(key)},"value":{quoted(redact_header(key, text) if self._redact else text)}}}')
        return f"[{','.join(made)}]"


def _keep(known: dict[bytes, str], data: bytes, text: str) -> str:
    if len(known) >= _WORDS_MAX:
        known.clear()
    known[data] = text
    return text
