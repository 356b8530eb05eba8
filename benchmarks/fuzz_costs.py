"""Damaged cost files: each must load as a database or end in a ThermoeError, soon and within little memory.

python -m benchmarks.fuzz_costs --cases 10000 --out benchmarks/results/fuzz-costs.json
"""

import argparse
import copy
import json
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thermoe.cost.database import CostDatabase
from thermoe.errors import ThermoeError

BASE = Path(__file__).resolve().parents[1] / "src/thermoe/cost/data/h200.costs.json"
LIMIT_S, LIMIT_BYTES = 5.0, 1 << 30
MOST_ROWS = 6
_VALUES = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf")),
    *("", "x", "nan", "\x00", "\ud800", "9" * 5000, [], {}, [[]], {"D": 1}, [1] * 1000),
)


@dataclass(slots=True)
class Tally:
    """How the cases ended.

    Attributes:
        outcomes: "loaded", the name of a ThermoeError, or "escaped: ..." for any other exception.
        slowest_s: Longest case [s].
        multiline: Messages of more than one line.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    multiline: int = 0


def base_text() -> str:
    """A real database cut to a few rows, so that a change hits something that matters."""
    costs = CostDatabase.load(BASE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.costs.json")
        CostDatabase(costs.rows[:MOST_ROWS]).save(path)
        return path.read_text(encoding="utf-8")


def damage_bytes(text: str, rng: random.Random) -> bytes:
    """Bytes changed, cut off, doubled or moved."""
    content = bytearray(text.encode())
    for _ in range(rng.randint(1, 6)):
        start = rng.randrange(max(len(content), 1))
        end = min(len(content), start + rng.choice((1, 2, 16, 400)))
        kind = rng.randrange(5)
        if kind == 0:
            content[start:end] = rng.randbytes(end - start)
        elif kind == 1:
            del content[start:end]
        elif kind == 2:
            content[start:start] = content[start:end]
        elif kind == 3:
            content[start:end] = rng.choice(
                (b"NaN", b"1e999", b"-", b'"', b"{", b"[" * 2000, b"\xff\xfe", b",", b"null")
            )
        else:
            del content[start:]
    return bytes(content)


def damage_values(text: str, rng: random.Random) -> bytes:
    """JSON that is whole, with values of other types and sizes, and members missing or doubled."""
    content = json.loads(text)
    for _ in range(rng.randint(1, 4)):
        parent, key = _somewhere(content, rng)
        if parent is None:
            break
        if rng.random() < 0.2:
            del parent[key]
        elif isinstance(parent, list) and rng.random() < 0.2:
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(rng.choice(_VALUES))  # later damage must not reach into the list of values
    return json.dumps(content).encode()


def run_case(content: bytes, path: Path, tally: Tally) -> None:
    """Load, use and write once more what loads."""
    path.write_bytes(content)
    start_s = time.perf_counter()
    try:
        costs = CostDatabase.load(path)
        _use(costs, path)
        outcome = "loaded"
    except ThermoeError as err:
        outcome = type(err).__name__
        tally.multiline += "\n" in str(err)
    except Exception as err:  # noqa: BLE001 - what escapes is what this looks for
        outcome = f"escaped: {type(err).__name__}: {str(err)[:100]}"
    tally.slowest_s = max(tally.slowest_s, time.perf_counter() - start_s)
    tally.outcomes[outcome] += 1


def fuzz(cases: int, seed: int) -> Tally:
    """So many damaged files, half of them by bytes and half by values."""
    rng, text, tally = random.Random(seed), base_text(), Tally()
    damages: tuple[Callable[[str, random.Random], bytes], ...] = (damage_bytes, damage_values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.costs.json")
        for number in range(cases):
            run_case(damages[number % 2](text, rng), path, tally)
    return tally


def report(tally: Tally, seed: int) -> dict[str, Any]:
    """What is written: counts, the slowest case, the most memory that this process ever took."""
    return {
        "schema": 1,
        "cases": tally.outcomes.total(),
        "seed": seed,
        "outcomes": dict(tally.outcomes.most_common()),
        "escaped": sum(n for name, n in tally.outcomes.items() if name.startswith("escaped")),
        "messages_of_several_lines": tally.multiline,
        "slowest_s": round(tally.slowest_s, 4),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> int:
    """Fuzz and write the report; 1 where something escaped, hung or took too much memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = report(fuzz(options.cases, options.seed), options.seed)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    failed = result["escaped"] or result["messages_of_several_lines"]
    return int(bool(failed) or result["slowest_s"] > LIMIT_S or result["peak_memory_bytes"] > LIMIT_BYTES)


def _use(costs: CostDatabase, path: Path) -> None:
    costs.merge(costs)
    costs.diff(costs)
    costs.save(path)
    if CostDatabase.load(path) != costs:
        raise AssertionError("what was written reads back as something else")


def _somewhere(content: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container and a key in it; every value of the file is as likely as any other, so most lie in rows."""
    places: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting:
        here = waiting.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here))
        places += [(here, key) for key in keys]
        waiting += [here[key] for key in keys if isinstance(here[key], dict | list)]
    return rng.choice(places) if places else (None, None)


if __name__ == "__main__":
    raise SystemExit(main())
