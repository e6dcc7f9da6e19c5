# SPDX-License-Identifier: Apache-2.0
"""
Mutation fuzzer of flow records, from bytes to lines, filters, metrics and the line for people.

Laws, for any bytes a producer may leave in a ring: reading gives records and reasons, never another exception; what
becomes a line is one line of printable ASCII and valid JSON whose facts are those of the record; nothing that was
redacted appears in it.

    python tests/fuzz/record_fuzz.py [SEED]

runs for IDMESH_FUZZ_SECONDS (5), 0 for ever; prints the seed and the bytes of the first failure and exits 1.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

from ext_authz.flow.compact import compact
from ext_authz.flow.counts import Counts
from ext_authz.flow.facts import read_line
from ext_authz.flow.hubble import Formatter
from ext_authz.flow.names import Names
from ext_authz.flow.record import FIXED, SIZE_MAX, SIZE_MIN, Record, RecordError, records
from ext_authz.flow.text import REDACTED

SECRET = b"s3cr3t"
_SIZES = FIXED.index("method_size")
_SPECIAL = (
    b"\xff",
    b"\0",
    b"\x1b[2J",
    b"\n",
    b'"',
    b"\\",
    b"?",
    b"#",
    b"@",
    b"\xed\xa0\x80",
    "é".encode(),
    b"://",
    b"/",
)


class Finding(Exception):
    """A law was broken."""


def seed_record(chance: random.Random) -> bytes:
    """A record of good form, its texts and numbers drawn."""
    from ext_authz.engine.layout import record

    layout = record("idm_flow_record")
    limits = {"B": 8, "H": 16, "I": 32, "Q": 64}
    values: dict[str, int | bytes] = {}
    for leaf in layout.leaves:
        if leaf.name in layout.names:
            values[leaf.name] = (
                _number(limits[leaf.code], chance) if leaf.code in limits else chance.randbytes(leaf.size)
            )
    texts = [_text(chance) for _ in range(6)]
    headers = [(_text(chance), _text(chance)) for _ in range(chance.randrange(4))]
    headers += [(b"Authorization", b"Bearer " + SECRET)] * chance.randrange(2)
    lines = b"".join(
        len(name).to_bytes(2, "little") + len(value).to_bytes(2, "little") + name + value for name, value in headers
    )
    texts[2] = (b"/" + texts[2].replace(SECRET, b""))[:500] + chance.choice([b"", b"?" + SECRET])
    body = b"".join(texts) + lines
    size = (SIZE_MIN + len(body) + 7) // 8 * 8
    sizes = [*(len(text) for text in texts), len(lines), len(headers)]
    values |= dict(zip(FIXED[_SIZES:], sizes, strict=True))
    values |= {"size": size, "version": 1, "type": chance.randint(1, 4), "door": chance.randint(1, 4)}
    values |= {"verdict": chance.choice([1, 2, 4, 5]), "family": chance.choice([0, 4, 6])}
    values |= {"direction": chance.randint(0, 1), "decision": bytes([chance.randrange(4)]) * 16}
    return layout.pack(**values) + body + bytes(size - SIZE_MIN - len(body))


def _number(bits: int, chance: random.Random) -> int:
    return chance.choice([0, 1, 2, 3, 80, (1 << bits) - 1, chance.getrandbits(bits)]) & ((1 << bits) - 1)


def _text(chance: random.Random) -> bytes:
    return b"".join(chance.choice((*_SPECIAL, b"a", b"GET")) for _ in range(chance.randrange(12)))


def mutate(data: bytes, chance: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(made))
        choice = chance.randrange(4)
        if choice == 0:
            made[at] ^= 1 << chance.randrange(8)
        elif choice == 1:
            made[at] = chance.choice((0, 1, 255, 128))
        elif choice == 2:
            del made[at : at + chance.randrange(1, 16)]
        else:
            made[at:at] = chance.randbytes(chance.randrange(1, 16))
        made = made or bytearray(1)
    return bytes(made[: 4 * SIZE_MAX])


def check(data: bytes, whole: bool, formatter: Formatter, counts: Counts) -> None:
    counts.add(data)
    for item in records(data):
        if isinstance(item, Record):
            _check_record(item, whole, formatter)
        elif whole:
            raise Finding(f"a record of good form was refused: {item}")


def _check_record(item: Record, whole: bool, formatter: Formatter) -> None:
    try:
        opened = formatter.opened(item)
        seen = formatter.format(item, opened)
    except (RecordError, ValueError):
        if whole:
            raise
        return
    if not (seen.line.isascii() and seen.line.isprintable()):
        raise Finding("a line of other than printable ASCII")
    read = read_line(seen.line)
    # The path is cut out of the URL there: a host with a slash, which is none, reads otherwise.
    if b"/" not in opened.host and b"://" not in opened.host and read.facts[3:] != seen.facts[3:]:
        raise Finding(f"facts differ: {read.facts[3:]} and {seen.facts[3:]}")
    if whole and SECRET.decode() in seen.line:
        raise Finding("a secret is shown")
    if not compact(json.loads(seen.line)["flow"]).isprintable():
        raise Finding("a line for people that is not printable")


def run(seconds: float, seed: int) -> int:
    """Number of inputs."""
    chance = random.Random(seed)
    # Damaged requests must not give their headers to good responses.
    formatters, counts = [Formatter(Names(Path("missing")), "node") for _ in range(2)], Counts()
    until, done = time.monotonic() + seconds, 0
    while not seconds or time.monotonic() < until:
        whole = chance.random() < 0.5
        data = b"".join(seed_record(chance) for _ in range(chance.randint(1, 3)))
        data = data if whole else mutate(data, chance)
        try:
            check(data, whole, formatters[whole], counts)
        except Exception as error:
            print(f"seed {seed}, input {done}: {type(error).__name__}: {error}\n{data.hex()}")
            raise
        done += 1
    return done


def main(arguments: list[str]) -> int:
    seed = int(arguments[0]) if arguments else random.randrange(1 << 32)
    seconds = float(os.environ.get("IDMESH_FUZZ_SECONDS", "5"))
    try:
        done = run(seconds, seed)
    except Exception:
        return 1
    print(f"records: {done} inputs, seed {seed}, {REDACTED} held")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
