"""Measure many cases into one database: resumes, survives failing cases, ends in time. No torch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from thermoe.cost.database import CostDatabase, Failure
from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.profiling.case import Case


@dataclass(frozen=True, slots=True)
class SweepResult:
    """How a sweep ended: cases measured now, skipped, failed, and left for want of time or of a usable process."""

    measured: int
    skipped: int
    failed: int
    left: int


def sweep(
    cases: Sequence[Case],
    measure: Callable[[Case], CostRow],
    device_key: DeviceKey,
    out: Path,
    *,
    minutes: float | None,
    skip_failed: bool = False,
    usable: Callable[[], bool] = lambda: True,
    report: Callable[[int, str], None],
) -> SweepResult:
    """Measure what `out` does not hold yet for this device, writing the file after every case.

    Args:
        cases: What to measure, in order of importance.
        measure: Makes a row of a case; whatever it raises becomes a failure in the file.
        device_key: What the rows belong to.
        out: The cost database, read first where it exists.
        minutes: Stop before a case that would probably end later than this; None for no limit [min].
        skip_failed: Leave out the cases that `out` records as failed, too.
        usable: Asked after a failure whether this process can measure any further; if not, the sweep ends.
        report: Told the cases dealt with so far and a line about the last one.
    """
    database = CostDatabase.load(out) if out.exists() else CostDatabase()
    measured = {r.key for r in database.rows}
    if not skip_failed:  # they are tried again; what is left in the end then failed in this sweep
        database.forget_failures(str(case) for case in cases)
    failed_before = {f.case for f in database.failures}
    start_s, longest_s, counts = time.monotonic(), 0.0, {"measured": 0, "skipped": 0, "failed": 0}
    for index, case in enumerate(cases):
        if (device_key, *_case_key(case)) in measured or str(case) in failed_before:
            counts["skipped"] += 1
            continue
        begun_s = time.monotonic()
        if minutes is not None and begun_s - start_s + longest_s > minutes * 60.0:
            break
        line = _attempt(case, measure, database)
        counts["failed" if line.startswith("failed") else "measured"] += 1
        database.save(out)
        longest_s = max(longest_s, time.monotonic() - begun_s)
        report(index + 1, f"{case}: {line}")
        if line.startswith("failed") and not usable():
            break
    return SweepResult(**counts, left=len(cases) - sum(counts.values()))


def _attempt(case: Case, measure: Callable[[Case], CostRow], database: CostDatabase) -> str:
    try:
        row = measure(case)
    except Exception as err:  # noqa: BLE001 - one failing case must not end the sweep; its words are kept
        message = f"{type(err).__name__}: {err}"
        database.failures.append(Failure(str(case), message))
        return f"failed, {' '.join(message.split())[:300]}"
    database.add(row)
    energy = "" if row.energy_mj is None else f", {row.energy_mj:.2f} mJ, {row.power_w:.0f} W"
    return f"{row.latency_us:.1f} us{energy}"


def _case_key(case: Case) -> tuple[str, str, str, int, int, int, int, int, int, int]:
    sizes = (case.hidden_size, case.inter_size, case.num_experts, case.top_k)
    return (case.op, case.impl, case.dtype, *sizes, case.tokens, case.routed_rows, case.distinct_experts)
