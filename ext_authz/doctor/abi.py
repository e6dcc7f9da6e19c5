# SPDX-License-Identifier: Apache-2.0
"""
The module's ABI, read from the ELF files: what it imports against what this Envoy exports, what it offers against
what each extension point looks up, and that nothing else leaks out of it.

Envoy binds every symbol when it loads a module, so one missing callback rejects the whole file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ext_authz.doctor.registry import Finding, Patient, check, fail, ok, warn
from ext_authz.envoy_binary import EnvoyNotFound, find_envoy

CALLBACK = "envoy_dynamic_module_callback_"
HOOK = "envoy_dynamic_module_on_"
_BASE = ["config_new", "config_destroy", "new", "destroy"]
_HTTP = [
    "request_headers",
    "request_body",
    "request_trailers",
    "response_headers",
    "response_body",
    "response_trailers",
]
_HTTP += ["stream_complete", "http_callout_done", "http_stream_headers", "http_stream_data", "http_stream_trailers"]
_HTTP += ["http_stream_complete", "http_stream_reset", "scheduled"]
_HTTP += ["downstream_above_write_buffer_high_watermark", "downstream_below_write_buffer_low_watermark"]
_BOOTSTRAP = ["config_scheduled", "server_initialized", "worker_thread_initialized", "drain_started", "shutdown"]
_BOOTSTRAP += ["http_callout_done", "timer_fired", "file_changed", "admin_request", "cluster_add_or_update"]
_BOOTSTRAP += ["cluster_removal", "listener_add_or_update", "listener_removal"]
# What Envoy looks up when a configuration names that kind of extension.
HOOKS: dict[str, list[str]] = {
    "program": ["program_init"],
    "http_filter": [f"http_filter_{name}" for name in [*_BASE, *_HTTP]],
    "listener_filter": [
        f"listener_filter_{name}"
        for name in [*_BASE, "on_accept", "on_data", "on_close", "get_max_read_bytes", "scheduled"]
    ],
    "network_filter": [f"network_filter_{name}" for name in [*_BASE, "new_connection", "read", "write", "event"]],
    "bootstrap_extension": [f"bootstrap_extension_{name}" for name in [*_BASE, *_BOOTSTRAP]],
}


@dataclass(frozen=True, slots=True)
class Symbols:
    """Dynamic symbols of one file."""

    exported: frozenset[str]
    needed: frozenset[str]
    weak: frozenset[str]


def read_symbols(path: Path) -> Symbols:
    """
    Raises:
        OSError, ValueError: No such file, or no ELF file with dynamic symbols.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    exported: set[str] = set()
    needed: set[str] = set()
    weak: set[str] = set()
    with open(path, "rb") as file:
        try:
            table = ELFFile(file).get_section_by_name(".dynsym")
            if table is None:
                raise ValueError(f"{path}: has no dynamic symbols")
            for symbol in table.iter_symbols():
                bind = symbol["st_info"]["bind"]
                if not symbol.name or bind == "STB_LOCAL":
                    continue
                if symbol["st_shndx"] != "SHN_UNDEF":
                    exported.add(symbol.name)
                else:
                    (weak if bind == "STB_WEAK" else needed).add(symbol.name)
        except ELFError as error:
            raise ValueError(f"{path}: {error}") from error
    return Symbols(frozenset(exported), frozenset(needed), frozenset(weak))


@check("module")
def module(patient: Patient) -> Iterator[Finding]:
    try:
        ours = read_symbols(patient.module)
    except FileNotFoundError:
        yield fail(f"{patient.module}: is not built", "run make setup")
        return
    except (OSError, ValueError) as error:
        yield fail(f"{patient.module}: {error}", "build it anew: make setup")
        return
    yield from offered(ours)
    yield from leaked(ours)
    try:
        yield from imported(ours, read_symbols(find_envoy().path))
    except (EnvoyNotFound, OSError, ValueError) as error:
        yield warn(f"imports not compared: {error}", "install Envoy, then run doctor again")


def offered(ours: Symbols) -> Iterator[Finding]:
    """Hooks against what each extension point needs."""
    for point, names in HOOKS.items():
        missing = [name for name in names if HOOK + name not in ours.exported]
        if missing:
            yield fail(f"{point}: hooks missing: {', '.join(missing)}", "Envoy would refuse the module: build it anew")
        else:
            yield ok(f"{point}: all {len(names)} hooks offered")


def leaked(ours: Symbols) -> Iterator[Finding]:
    """Symbols that could bind to Envoy's own, or the other way round."""
    foreign = sorted(name for name in ours.exported if not name.startswith(HOOK))
    if foreign:
        shown = ", ".join(foreign[:5])
        yield fail(f"{len(foreign)} symbols leak out of the module: {shown}", "link with --exclude-libs,ALL")
    else:
        yield ok("nothing but hooks is exported")


def imported(ours: Symbols, envoy: Symbols) -> Iterator[Finding]:
    """Callbacks against what this Envoy exports."""
    needed = sorted(name for name in ours.needed if name.startswith(CALLBACK))
    missing = [name.removeprefix(CALLBACK) for name in needed if name not in envoy.exported]
    if missing:
        yield fail(f"this Envoy lacks callbacks: {', '.join(missing)}", "use a newer Envoy")
    else:
        yield ok(f"all {len(needed)} callbacks imported are exported by this Envoy")
    absent = sorted(name.removeprefix(CALLBACK) for name in ours.weak - envoy.exported if name.startswith(CALLBACK))
    if absent:
        yield ok(f"newer callbacks this Envoy lacks, and the module does without: {', '.join(absent)}")
