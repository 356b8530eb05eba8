"""Plays a recorded log of states again."""

import math
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, Self

from thermoe.errors import DataError, TelemetryError
from thermoe.telemetry.scenario import SENSOR_FIELDS
from thermoe.telemetry.tables import Row, read_table
from thermoe.types import Kind, SysState

_INTEGER_FIELDS = frozenset({"memory_used_bytes", "performance_state", "throttle_reasons"})
_NUMBER_FIELDS = [f.name for f in fields(SysState) if f.name not in ("source", "kind")]
_LOG_NAME = "telemetry.parquet"


class ReplaySource:
    """Each read gives the next recorded state, as fast as it is asked for.

    All states are of kind replayed, whatever they were when recorded. A log whose clock starts again
    (several arms of a run, one after another) is replayed as one: the clock goes on from where it was.

    Args:
        states: The states, in the order recorded.
        name: Name of the source.
        on_end: After the last state: "raise" a `TelemetryError`, or "hold" the last state.
    """

    kind = Kind.REPLAYED

    def __init__(
        self, states: Iterable[SysState], name: str = "replay", *, on_end: Literal["raise", "hold"] = "raise"
    ) -> None:
        self.name = name
        self._states = [replace(state, source=name, kind=Kind.REPLAYED) for state in _with_one_clock(states)]
        if not self._states:
            raise DataError(f"{name} has no states to replay: needed at least one")
        self._on_end = on_end
        self._next = 0

    @classmethod
    def from_file(cls, path: str | Path, *, on_end: Literal["raise", "hold"] = "raise") -> Self:
        """Open a recorded log.

        Args:
            path: A run folder, its `telemetry.parquet`, or any Parquet or CSV file with a column `time_s` and
                at least one more field of `SysState`; empty cells are silent sensors.
            on_end: As for the class.

        Raises:
            DataError: If the file is missing, empty, truncated or not a log of states.
        """
        file = Path(path)
        if file.is_dir():
            file = file / _LOG_NAME
        return cls(_read_states(file), f"replay:{file}", on_end=on_end)

    def __len__(self) -> int:
        return len(self._states)

    def read(self) -> SysState:
        """The next state.

        Raises:
            TelemetryError: After the last one, unless the source holds it.
        """
        if self._next >= len(self._states):
            if self._on_end == "hold":
                return self._states[-1]
            raise TelemetryError(f"replay log exhausted after {len(self)} states: record a longer run or stop earlier")
        self._next += 1
        return self._states[self._next - 1]

    def close(self) -> None:
        """Nothing to release."""


def _with_one_clock(states: Iterable[SysState]) -> list[SysState]:
    """Shift each stretch whose clock starts again to follow the one before by its own last interval."""
    joined: list[SysState] = []
    shift_s, last_s, interval_s = 0.0, -math.inf, 0.0
    for state in states:
        if state.time_s < last_s:
            shift_s = joined[-1].time_s + interval_s - state.time_s
        elif joined:
            interval_s = state.time_s - last_s
        last_s = state.time_s
        joined.append(replace(state, time_s=state.time_s + shift_s))
    return joined


def _read_states(file: Path) -> list[SysState]:
    rows = read_table(file)
    columns = set(rows[0])
    if "time_s" not in columns or not columns & SENSOR_FIELDS:
        found = ", ".join(sorted(map(str, columns))[:8])
        raise DataError(
            f"{file} is not a telemetry log (columns {found}): needs time_s and a reading such as power_w or temp_c"
        )
    return [_state(row, f"{file}, row {number}") for number, row in enumerate(rows, start=1)]


def _state(row: Row, where: str) -> SysState:
    values = {name: _number(row[name], f"{where}, {name}") for name in _NUMBER_FIELDS if name in row}
    time_s = values.pop("time_s")
    if time_s is None:
        raise DataError(f"{where}: time_s is missing; every row needs its time")
    wall_time_s = values.pop("wall_time_s", None)
    for name in _INTEGER_FIELDS & values.keys():
        number = values[name]
        values[name] = None if number is None else int(number)
    sensors: dict[str, int | float | None] = dict(values)
    return SysState(
        time_s=time_s,
        wall_time_s=time_s if wall_time_s is None else wall_time_s,
        source="",
        kind=Kind.REPLAYED,
        **sensors,  # type: ignore[arg-type]  # names and number types were checked above
    )


def _number(value: object, where: str) -> float | None:
    """A finite number, or `None` for an empty cell; NaN in a log stands for a silent sensor too."""
    if value is None:
        return None
    try:
        number = float(str(value))
    except ValueError:
        raise DataError(f"{where}: {value!r} is not a number; leave a cell empty where the sensor was silent") from None
    return number if math.isfinite(number) else None
