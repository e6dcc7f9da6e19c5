# SPDX-License-Identifier: Apache-2.0
"""Canonical paths. What Envoy makes of the same paths is compared in tests/envoy/test_canonical_paths.py."""

from __future__ import annotations

import pytest
from ext_authz.engine._engine import ffi, lib
from hypothesis import given
from hypothesis import strategies as st


def canonical(path: bytes) -> tuple[int, bytes | None]:
    """(answer of the engine, canonical form or None)."""
    data = ffi.from_buffer(path)
    out, size = ffi.new("char[]", max(1, 3 * len(path))), ffi.new("size_t *")
    answer = lib.idm_path_canonicalize({"ptr": data, "size": len(path)}, out, size)
    return answer, None if answer < 0 else bytes(ffi.buffer(out, size[0]))


# Envoy 1.40 gave these answers (normalize_path, merge_slashes, UNESCAPE_AND_FORWARD).
CHANGED = {
    b"/a/../b": b"/b",
    b"/a/%2e%2e/b": b"/b",
    b"/a/%2E./b": b"/b",
    b"/a//b": b"/a/b",
    b"/a/%2f/b": b"/a/b",
    b"/a%5cb": b"/a/b",
    b"/a\\..\\b": b"/b",
    b"/%41%7e%2d%5f%30": b"/A~-_0",
    b"/%25%32%66": b"/%252f",
    b"/a/.": b"/a/",
    b"/a/..": b"/",
    b"/a/b/..": b"/a/",
    b"/../..": b"/",
    b"/./": b"/",
    b"/%2e%2e/%2e%2e/x": b"/x",
    b"/a%2f%2e%2e%2fb": b"/b",
    b"/a//../b": b"/a/b",
    b"/a/b//../../c": b"/a/c",
    b"/..//a": b"/a",
    b"///": b"//",
    b"/%2F%2Fa": b"/a",
    b"/a/../b?c=/../d": b"/b?c=/../d",
    b'/{a}|^`<>"': b"/%7Ba%7D%7C%5E%60%3C%3E%22",
    b"/a/;/../b": b"/a/b",
}
KEPT = (
    b"/",
    b"//",
    b"/a/b",
    b"/a/",
    b"/a?",
    b"/a?b/../c//d%2f%zz\xff",
    b"/a/...",
    b"/.well-known/x",
    b"/a./..b/c..",
    b"/%252f",
    b"/%20%C3%a9%3f%23%3B",
    b"/'[]!$&()*+,;=:@~",
    b"/a;x=1/b;/;",
    b"/...;x",
    b"/a/..%3b/b",
)
REFUSED = (
    b"",
    b"?",
    b"a",
    b"*",
    b"http://h/a",
    b"\\a",
    b"%2fa",
    b"/a#b",
    b"/a?b#c",
    b"/%00",
    b"/a\0",
    b"/a?\0",
    b"/a\n",
    b"/\x7f",
    b"/\xc3\xa9",
    b"/%",
    b"/%4",
    b"/%zz",
    b"/%%2f",
    b"/a/..;/b",
    b"/a/.;x",
    b"/a/%2e%2e;/b",
    b"/..;",
)


@pytest.mark.parametrize(("path", "form"), CHANGED.items())
def test_what_envoy_rewrites_is_rewritten(path: bytes, form: bytes) -> None:
    assert canonical(path) == (0, form)
    assert canonical(form) == (1, form)


@pytest.mark.parametrize("path", KEPT)
def test_what_is_canonical_is_kept(path: bytes) -> None:
    assert canonical(path) == (1, path)


@pytest.mark.parametrize("path", REFUSED)
def test_what_might_be_read_in_two_ways_is_refused(path: bytes) -> None:
    assert canonical(path)[0] < 0


PIECES = st.sampled_from(
    [b"/", b"//", b".", b"..", b"%2e", b"%2F", b"%5c", b"\\", b"a", b"b;x", b";", b"%41", b"%25", b"{", b"?", b"~"]
)


@given(st.lists(PIECES, max_size=30).map(lambda pieces: b"/" + b"".join(pieces)))
def test_a_canonical_form_is_its_own_and_does_not_climb(path: bytes) -> None:
    answer, form = canonical(path)
    if answer < 0:
        return
    assert form is not None
    assert canonical(form) == (1, form)
    assert (answer == 1) == (form == path)
    segments = form.partition(b"?")[0].split(b"/")
    assert not {b".", b".."} & set(segments)
    assert not any(segment.startswith((b".;", b"..;")) for segment in segments)
