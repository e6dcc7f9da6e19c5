# SPDX-License-Identifier: Apache-2.0
"""Laws of doctor: it sees what would break, and says what to do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ext_authz.doctor import abi, registry, statedir
from ext_authz.doctor.abi import CALLBACK, HOOK, HOOKS, Symbols, imported, leaked, offered, read_symbols
from ext_authz.doctor.registry import Finding, Grade, Patient
from ext_authz.state import State


def grades(findings: object) -> set[Grade]:
    return {finding.grade for finding in findings}  # type: ignore[attr-defined]


def whole() -> Symbols:
    hooks = frozenset(HOOK + name for names in HOOKS.values() for name in names)
    return Symbols(hooks, frozenset({CALLBACK + "log", "malloc"}), frozenset({CALLBACK + "newer"}))


ENVOY = Symbols(frozenset({CALLBACK + "log"}), frozenset(), frozenset())


def test_a_whole_module_is_fine() -> None:
    for findings in (offered(whole()), leaked(whole()), imported(whole(), ENVOY)):
        assert grades(findings) == {Grade.OK}


def test_a_missing_hook_fails() -> None:
    cut = Symbols(whole().exported - {HOOK + "http_filter_new"}, frozenset(), frozenset())
    assert [f.text for f in offered(cut) if f.grade == Grade.FAIL] == ["http_filter: hooks missing: http_filter_new"]


def test_a_leaked_symbol_fails() -> None:
    for name in ("_ZN3re23RE2C1Ev", "_ZN4absl5MutexD1Ev", "_ZNSt6vectorIhE", "idm_decide"):
        assert grades(leaked(Symbols(whole().exported | {name}, frozenset(), frozenset()))) == {Grade.FAIL}


def test_a_callback_that_this_envoy_lacks_fails_unless_it_is_weak() -> None:
    needs = Symbols(frozenset(), frozenset({CALLBACK + "missing"}), frozenset())
    assert grades(imported(needs, ENVOY)) == {Grade.FAIL}
    assert grades(imported(Symbols(frozenset(), frozenset(), frozenset({CALLBACK + "newer"})), ENVOY)) == {Grade.OK}


def test_symbols_are_read_from_the_file(tmp_path: Path) -> None:
    source = (
        "void seen(void) { extern void wanted(void); wanted(); }\n"
        '__attribute__((visibility("hidden"))) void unseen(void) {}\n'
        "extern void maybe(void) __attribute__((weak)); void also(void) { if (maybe) maybe(); }\n"
    )
    (tmp_path / "m.c").write_text(source)
    library = tmp_path / "m.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "m.c"], check=True)
    found = read_symbols(library)
    assert {"seen", "also"} <= found.exported
    assert "unseen" not in found.exported
    assert "wanted" in found.needed
    assert "maybe" in found.weak


def test_what_is_no_module_fails(tmp_path: Path) -> None:
    bad = tmp_path / "m.so"
    for content in (None, b"", b"text", b"\x7fELF" + b"\0" * 10):
        if content is not None:
            bad.write_bytes(content)
        assert Grade.FAIL in grades(abi.module(Patient(tmp_path, bad)))


# ---- the state directory, the registry ----


def test_files_that_others_may_read_fail(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    state.prepare()
    patient = Patient(state.root, tmp_path)
    assert grades(statedir.state_directory(patient)) == {Grade.OK}
    state.snapshot.write_bytes(b"")
    state.snapshot.chmod(0o644)
    assert grades(statedir.state_directory(patient)) == {Grade.FAIL}


def test_a_directory_that_others_may_write_fails(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    state.prepare()
    state.root.chmod(0o777)
    assert Grade.FAIL in grades(statedir.state_directory(Patient(state.root, tmp_path)))


def test_a_check_that_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_patient: Patient) -> list[Finding]:
        raise RuntimeError("oh")

    monkeypatch.setattr(registry, "MODULES", ())
    monkeypatch.setattr(registry, "_checks", {"x": broken})
    (title, finding) = registry.examine(Patient(tmp_path, tmp_path))[0]
    assert (title, finding.grade) == ("x", Grade.FAIL)
    assert "oh" in finding.text
