"""A recorded trace: the sensors of a board at 10 Hz and the plan of the loads it was under."""

import gzip
import itertools
import json
import math
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from thermoe.errors import ConfigError, DataError
from thermoe.types import Kind, SysState

SCHEMA_VERSION = 1
_SUFFIX = ".json.gz"


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One load of the plan.

    Attributes:
        start_s: When it began, by the clock of the states [s].
        name, duty: What ran, and the share of time in which it did, in [0, 1].
        planned_w: Power planned for it before it ran [W]; None while powers were still being found out.
        planned_memory_util: Use of the memory planned for it, in [0, 1]; None for what the board does not tell.
    """

    start_s: float
    name: str
    duty: float
    planned_w: float | None
    planned_memory_util: float | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """States and loads in order, and what they were recorded on."""

    states: list[SysState]
    loads: list[PlannedStep]
    env: dict[str, Any]

    @property
    def kind(self) -> Kind:
        """Whether a board was measured or simulated."""
        return self.states[0].kind

    def write(self, folder: Path) -> Path:
        """Write into `folder` as `heat-SEED.json.gz`; columns that are silent throughout are left out."""
        rows = [state.as_dict() for state in self.states]
        silent = {name for name in rows[0] if all(row[name] is None for row in rows)}
        constant = {name: rows[0][name] for name in ("source", "kind")}
        columns = [name for name in rows[0] if name not in silent and name not in constant]
        content = {
            "schema": SCHEMA_VERSION,
            "env": self.env,
            "constant": constant,
            "columns": columns,
            "rows": [[_short(row[name]) for name in columns] for row in rows],
            "loads": [asdict(load) for load in self.loads],
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"heat-{self.env.get('seed', 0)}{_SUFFIX}"
        with gzip.GzipFile(path, "wb", mtime=0) as file:
            file.write(json.dumps(content, separators=(",", ":")).encode())
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            DataError: If the file is damaged or of another format.
        """
        try:
            content = json.loads(gzip.decompress(path.read_bytes()))
            columns, constant = content["columns"], content["constant"]
            states = [SysState.from_dict(dict(zip(columns, row, strict=True)) | constant) for row in content["rows"]]
            loads = [PlannedStep(**load) for load in content["loads"]]
            _check(states, loads)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
            said = " ".join(str(error).split())[:100]
            raise DataError(f"{path} is no trace of loads ({type(error).__name__}, {said}): record it again") from None
        if len(states) < 2 or not loads:
            raise DataError(f"{path} holds {len(states)} states and {len(loads)} loads: record for longer")
        return cls(states, loads, content["env"])


def _check(states: list[SysState], loads: list[PlannedStep]) -> None:
    """Raise ValueError for what is no number where one is needed, or out of order."""
    readings = [v for s in states for n, v in s.as_dict().items() if n not in ("source", "kind") and v is not None]
    numbers = [
        v
        for step in loads
        for v in (step.start_s, step.duty, step.planned_w, step.planned_memory_util)
        if v is not None
    ]
    wrong = [v for v in (*readings, *numbers) if not isinstance(v, int | float) or not math.isfinite(v)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no number")
    for times in ([s.time_s for s in states], [step.start_s for step in loads]):
        if any(later < earlier for earlier, later in itertools.pairwise(times)):
            raise ValueError("its clock goes back")


def read_traces(folder: Path) -> list[Trace]:
    """Every trace of a folder, all of one kind.

    Raises:
        ConfigError: If there is none, or measured and simulated ones are mixed.
    """
    traces = [Trace.read(path) for path in sorted(folder.glob(f"*{_SUFFIX}"))]
    if not traces:
        raise ConfigError(f"no trace (*{_SUFFIX}) in {folder}: record one with --record --out {folder}")
    if len({trace.kind for trace in traces}) > 1:
        raise ConfigError(f"{folder} mixes measured and simulated traces: keep them in folders of their own")
    return traces


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
