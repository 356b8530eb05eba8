"""Mutated nsys, ncu, torch and power files: each ends in a table or a ThermoeError, in bounded time and memory."""

import argparse
import json
import platform
import random
import resource
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

import thermoe
from benchmarks import fuzz_bases
from thermoe.errors import ThermoeError
from thermoe.profiling.parsing import parse_profiler_output, sqlite_file

BASES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "nsys": ("t.sqlite", fuzz_bases.nsys),
    "nsys_unchecked": ("t.sqlite", fuzz_bases.nsys),
    "nsys_values": ("t.sqlite", fuzz_bases.nsys),
    "ncu_long": ("t.csv", fuzz_bases.ncu_long),
    "ncu_wide": ("t.csv", fuzz_bases.ncu_wide),
    "torch": ("t.json", fuzz_bases.trace),
    "torch_values": ("t.json", fuzz_bases.trace),
    "torch_gz": ("t.json.gz", fuzz_bases.trace),
    "power_log": ("p.csv", fuzz_bases.power_log),
}
#: Real files that are mutated too where the folder of samples is named.
SAMPLES = {"real_nsys": ("t.sqlite", "nsys/t4_vector_2022.4.sqlite"), "real_ncu": ("t.csv", "ncu/t4_copy_details.csv")}
LIMIT_S = 20
CASES_PER_PROCESS = 500
_ODD = (
    *(b"0", b"-1", b"9" * 19, b"9" * 400, b"1e308", b"-1e999", b"NaN", b"null", b"\xff\xfe", b"\0", b'"', b"\n", b""),
    *(b"{", b"[", b"]", b"}", b",", b";", b"1,5", b"-9223372036854775808", b"9223372036854775807", b"\xe2\x80\xaf"),
)
_ODD_VALUES = (None, 0, -1, 2**63 - 1, -(2**63), 2**53 + 1, 1e308, "text", "", b"\x00\xff" * 9, "9" * 5000, 0.5)


class TooSlowError(Exception):
    """A case took longer than the limit."""


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to six changes of bytes: flips, odd tokens, pieces cut, doubled, moved or made random."""
    for _ in range(rng.randint(1, 6)):
        if not data:
            return data
        at = rng.randrange(len(data))
        length = min(rng.choice((1, 1, 2, 8, 64, 1024)), len(data) - at)
        way = rng.randrange(7)
        if way == 0:
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif way == 1:
            data = data[:at] + rng.choice(_ODD) + data[at + length :]
        elif way == 2:
            data = data[:at] + data[at + length :]
        elif way == 3:
            data = data[:at] + data[at : at + length] * rng.choice((2, 2, 50)) + data[at + length :]
        elif way == 4:
            data = data[:at] + rng.randbytes(length) + data[at + length :]
        elif way == 5:
            other = rng.randrange(len(data))
            data = data[:at] + data[other : other + length] + data[at + length :]
        elif rng.random() < 0.3:
            data = data[:at]
    return data


def mutate_values(path: Path, rng: random.Random) -> None:
    """A database that is whole, with values, columns and tables that nsys would not write."""
    connection = sqlite3.connect(path)
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
    for _ in range(rng.randint(1, 5)):
        table = rng.choice(tables)
        columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
        column = rng.choice(columns)
        way = rng.random()
        try:
            if way < 0.75:
                value, share = rng.choice(_ODD_VALUES), rng.choice((1, 2, 7))
                connection.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid % {share} = 0', [value])
            elif way < 0.85:
                connection.execute(f'ALTER TABLE "{table}" DROP COLUMN "{column}"')
            elif way < 0.95:
                connection.execute(f'INSERT INTO "{table}" SELECT * FROM "{table}"')
            else:
                connection.execute(f'DELETE FROM "{table}"')
        except sqlite3.Error:
            continue  # the schema forbids this change: a file like it cannot exist
    connection.commit()
    connection.close()


def mutate_json(path: Path, rng: random.Random) -> None:
    """A trace that is JSON, with values and members that torch.profiler would not write."""
    odd = (
        *(v for v in _ODD_VALUES if not isinstance(v, bytes)),
        [],
        {},
        [1, "x", None],
        {"a": []},
        True,
        10**400,
        -0.1,
    )
    content = json.loads(path.read_bytes())
    for _ in range(rng.randint(1, 12)):
        place = rng.choice([content, *rng.choices(content["traceEvents"], k=20)])
        if isinstance(place, dict) and isinstance(place.get("args"), dict) and rng.random() < 0.5:
            place = place["args"]
        names = [name for name in place if name != "traceEvents"]
        if names and rng.random() < 0.8:
            place[rng.choice(names)] = rng.choice(odd)
        elif names:
            del place[rng.choice(names)]
    path.write_text(json.dumps(content), encoding="utf-8")


def run_case(kind: str, seed: int, folder: Path, samples: Path | None = None) -> str:
    """Parse one mutated file; "table", or the name of the ThermoeError. Any other exception is passed on."""
    rng = random.Random(f"{kind} {seed}")
    path = _write_base(kind, folder, samples)
    if kind == "nsys_values":
        mutate_values(path, rng)
    elif kind == "torch_values":
        mutate_json(path, rng)
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    log: Path | None = None
    if kind == "power_log" or rng.random() < 0.5:
        log = folder / "p.csv"
        if kind != "power_log":
            fuzz_bases.power_log(log)
        else:
            path = folder / "whole.sqlite"
            if not path.exists():
                fuzz_bases.nsys(path)
    largest_checked = 0 if kind == "nsys_unchecked" else sqlite_file.CHECKED_BYTES  # as files of gigabytes are read
    try:
        with patch.object(sqlite_file, "CHECKED_BYTES", largest_checked):
            parse_profiler_output(path, log)
    except ThermoeError as error:
        if "\n" in str(error) or not str(error):
            raise AssertionError(f"not one line: {error!r}") from error
        return type(error).__name__
    return "table"


def _write_base(kind: str, folder: Path, samples: Path | None) -> Path:
    if kind in SAMPLES and samples is not None:
        name, sample = SAMPLES[kind]
        (folder / name).write_bytes((samples / sample).read_bytes())
        return folder / name
    name, write = BASES[kind]
    (folder / name).unlink(missing_ok=True)
    write(folder / name)
    return folder / name


def run_cases(cases: Sequence[tuple[str, int]], samples: Path | None = None) -> dict[str, Any]:
    """Run cases in this process: outcomes, failures, slowest case [s] and highest resident memory [MB]."""
    outcomes: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    slowest_s = 0.0
    signal.signal(signal.SIGALRM, _too_slow)
    with tempfile.TemporaryDirectory() as name:
        for kind, seed in cases:
            started_s = time.monotonic()
            signal.alarm(LIMIT_S)
            try:
                outcomes[f"{kind}: {run_case(kind, seed, Path(name), samples)}"] += 1
            except Exception as error:  # noqa: BLE001  # whatever it is, it is the finding
                lines = traceback.format_exception(error)
                failures.append(
                    {"kind": kind, "seed": seed, "error": f"{error!r}"[:300], "where": lines[-2].strip()[:300]}
                )
            finally:
                signal.alarm(0)
            slowest_s = max(slowest_s, time.monotonic() - started_s)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"outcomes": outcomes, "failures": failures, "slowest_s": slowest_s, "peak_mb": peak_mb}


def _too_slow(_signal: int, _frame: FrameType | None) -> None:
    raise TooSlowError(f"longer than {LIMIT_S} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz; 1 if any case ended otherwise than in a table or a ThermoeError."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_parsers", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case")
    parser.add_argument("--samples", type=Path, help="folder of real nsys and ncu files, to mutate those too")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    kinds = [*BASES, *(SAMPLES if options.samples else ())]
    cases = [(kinds[i % len(kinds)], options.seed + i // len(kinds)) for i in range(options.cases)]
    chunks = [cases[i : i + CASES_PER_PROCESS] for i in range(0, len(cases), CASES_PER_PROCESS)]
    started_s = time.monotonic()
    with ProcessPoolExecutor(options.jobs, max_tasks_per_child=1) as pool:
        parts = list(pool.map(partial(run_cases, samples=options.samples), chunks))
    result = _result(parts, options, time.monotonic() - started_s)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{options.cases} cases, {len(result['failures'])} failures, {result['slowest_s']} s, {result['peak_mb']} MB")
    return 1 if result["failures"] else 0


def _result(parts: Sequence[dict[str, Any]], options: argparse.Namespace, took_s: float) -> dict[str, Any]:
    outcomes: Counter[str] = sum((part["outcomes"] for part in parts), Counter())
    return {
        "schema": 1,
        "kind": "measured",
        "env": _environment(),
        "cases": options.cases,
        "seed": options.seed,
        "limit_s": LIMIT_S,
        "outcomes": dict(sorted(outcomes.items())),
        "failures": [failure for part in parts for failure in part["failures"]],
        "slowest_s": round(max(part["slowest_s"] for part in parts), 3),
        "peak_mb": round(max(part["peak_mb"] for part in parts), 1),
        "took_s": round(took_s, 1),
    }


def _environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "pandas": pd.__version__,
        "numpy": np.__version__,
        "thermoe": thermoe.__version__,
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    sys.exit(main())
