# SPDX-License-Identifier: Apache-2.0
"""
Measure, keep the raw figures (results/NAME.json) and write RESULTS.md from all that are kept.

    python -m tests.load [NAME ...] [--list] [--render]
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import time
import traceback
from pathlib import Path

from tests.load import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TABLES = (
    "engine",
    "hostile",
    "module",
    "latency",
    "ext_authz",
    "ext_proc",
    "scale",
    "churn",
    "memory",
    "revisions",
    "packets",
    "steering",
    "pods",
    "events",
    "sidecars",
)


def main() -> int:
    """Run the named tables, or all; a table that cannot be measured here is said and exits 2 at the end."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"tables: {', '.join(TABLES)}")
    parser.add_argument("--list", action="store_true", help="list the tables")
    parser.add_argument("--render", action="store_true", help="only write RESULTS.md from the raw results")
    args = parser.parse_args()
    unknown = set(args.names) - set(TABLES)
    if unknown:
        parser.error(f"no such table: {', '.join(sorted(unknown))}")
    if args.list:
        for name in TABLES:
            print(f"{name:10} {_module(name).TITLE}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    failed = [] if args.render else [name for name in args.names or TABLES if not _measure(name)]
    render()
    return 2 if failed else 0


def render() -> None:
    """Write RESULTS.md: the machine, then each table of which raw results are kept."""
    parts = [HERE.joinpath("HEAD.md").read_text()]
    for name in TABLES:
        kept = RESULTS / f"{name}.json"
        if not kept.exists():
            continue
        raw = json.loads(kept.read_text())
        module = _module(name)
        try:
            table = module.render(raw["data"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            table = f"The raw results are of another form than the table ({error!r}): measure again."
        parts.append(f"## {module.TITLE}\n\n{_provenance(name, raw)}\n\n{table}\n")
    HERE.joinpath("RESULTS.md").write_text("\n".join(parts))


def _measure(name: str) -> bool:
    module = _module(name)
    print(f"== {module.TITLE}", file=sys.stderr)
    started = time.monotonic()
    try:
        data = module.run(_progress)
    except machine.Missing as error:
        print(f"{name}: not measured: {error}", file=sys.stderr)
        return False
    except Exception:  # the other tables are worth having all the same
        traceback.print_exc()
        print(f"{name}: failed; what was measured before stays", file=sys.stderr)
        return False
    RESULTS.mkdir(exist_ok=True)
    raw = {"machine": machine.describe(), "measured": time.strftime("%Y-%m-%d"), "data": data}
    (RESULTS / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n")
    _progress("")
    print(f"{name}: measured in {time.monotonic() - started:.0f} s", file=sys.stderr)
    render()
    return True


def _provenance(name: str, raw: dict) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in sorted(raw["machine"].items()))
    return f"`make bench ONLY={name}`, {raw['measured']}; {facts}"


def _module(name: str):
    return importlib.import_module(f"tests.load.table_{name}")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
