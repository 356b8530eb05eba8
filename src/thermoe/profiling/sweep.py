"""Measure many cases into one database: resumes, survives failing cases, ends in time. No torch."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from thermoe.cost.database import CostDatabase, Failure
from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.profiling.case import Case

SAVE_EVERY_S = 10.0
"""The file is written this often and at the end: writing a thousand rows after every case takes longer than a case."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """How a sweep ended: cases measured now, skipped, failed, and left for want of time or of a usable process."""

    measured: int
    skipped: int
    failed: int
    left: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What is told after every case.

    Attributes:
        done: Cases dealt with so far.
        line: A line about the last one.
        left_s: Time that the rest will probably take, no more than there is [s]; None before it can be told.
    """

    done: int
    line: str
    left_s: float | None


@dataclass(slots=True)
class _Pace:
    """Mean time of cases with and without energy windows."""

    total_s: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    count: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    def add(self, case: Case, seconds: float) -> None:
        self.total_s[case.energy] += seconds
        self.count[case.energy] += 1

    def of(self, energy: bool) -> float:
        return self.total_s[energy] / self.count[energy] if self.count[energy] else 0.0

    def rest_s(self, cases: Sequence[Case]) -> float:
        with_energy = sum(case.energy for case in cases)
        return with_energy * self.of(energy=True) + (len(cases) - with_energy) * self.of(energy=False)


def sweep(
    cases: Sequence[Case],
    measure: Callable[[Case], CostRow],
    device_key: DeviceKey,
    out: Path,
    *,
    minutes: float | None,
    again: bool = False,
    since: str = "",
    smoke: bool = False,
    skip_failed: bool = False,
    has_sensors: bool = True,
    usable: Callable[[], bool] = lambda: True,
    report: Callable[[Progress], None],
) -> SweepResult:
    """Measure what `out` does not hold yet for this device.

    Args:
        cases: What to measure, in order.
        measure: Makes a row of a case; whatever it raises becomes a failure in the file.
        device_key: What the rows belong to.
        out: The cost database, read first where it exists; written every few seconds and at the end, however it comes.
        minutes: Stop before a case that would probably end later than this; None for no limit [min].
        again: Measure cases that `out` holds, too, but for those held since the occasion `since`.
        since: An occasion, as rows name it.
        smoke: Whether this sweep only shows that cases run: only then is a case held that was seen to run.
        skip_failed: Leave out the cases that `out` records as failed, too.
        has_sensors: Whether energy can be had; if not, a row without it is all there will be.
        usable: Asked after a failure whether this process can measure any further; if not, the sweep ends.
        report: Told after every case.
    """
    database = CostDatabase.load(out) if out.exists() else CostDatabase()
    rows = [r for r in database.rows if r.device == device_key and (smoke or not r.is_smoke)]
    have = _held(r for r in rows if not again or (since and r.occasion >= since))
    if not skip_failed:  # they are tried again; what is left in the end then failed in this sweep
        database.forget_failures(str(case) for case in cases)
    failed_before = {f.case for f in database.failures}
    wanted = [
        case for case in cases if not _is_held(have, case, has_sensors=has_sensors) and str(case) not in failed_before
    ]
    skipped, start_s, saved_s = len(cases) - len(wanted), time.monotonic(), time.monotonic()
    counts, pace = {"measured": 0, "failed": 0}, _Pace()
    try:
        for index, case in enumerate(wanted):
            begun_s = time.monotonic()
            if minutes is not None and begun_s - start_s + pace.of(case.energy) > minutes * 60.0:
                break
            line = _attempt(case, measure, database)
            failed = line.startswith("failed")
            counts["failed" if failed else "measured"] += 1
            now_s = time.monotonic()
            pace.add(case, now_s - begun_s)
            left_s = pace.rest_s(wanted[index + 1 :])
            if minutes is not None:
                left_s = max(0.0, min(left_s, minutes * 60.0 - (now_s - start_s)))
            report(Progress(skipped + index + 1, f"{case}: {line}", left_s))
            if now_s - saved_s > SAVE_EVERY_S:
                database.save(out)
                saved_s = now_s
            if failed and not usable():
                break
    finally:
        if wanted:
            database.save(out)
    return SweepResult(counts["measured"], skipped, counts["failed"], len(wanted) - sum(counts.values()))


def _held(rows: Iterable[CostRow]) -> dict[tuple[object, ...], bool]:
    """Cases that are measured, and whether with energy."""
    held: dict[tuple[object, ...], bool] = {}
    for row in rows:
        held[row.case_key] = held.get(row.case_key, False) or row.energy_mj is not None
    return held


def _is_held(held: dict[tuple[object, ...], bool], case: Case, *, has_sensors: bool) -> bool:
    return case.key in held and (held[case.key] or not case.energy or not has_sensors)


def _attempt(case: Case, measure: Callable[[Case], CostRow], database: CostDatabase) -> str:
    try:
        row = measure(case)
    except Exception as err:  # noqa: BLE001 - one failing case must not end the sweep; its words are kept
        message = f"{type(err).__name__}: {err}"
        database.failures.append(Failure(str(case), message))
        return f"failed, {' '.join(message.split())[:300]}"
    database.add(row)
    energy = "" if row.energy_mj is None else f", {row.energy_mj:.2f} mJ, {row.power_w or 0:.0f} W"
    return f"{row.latency_us:.1f} us{energy}"
