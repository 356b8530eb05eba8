"""Rows of a results file, the lines that are printed, and the file itself."""

import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.card import SCHEMA_VERSION, describe
from benchmarks.kernels.cell import Cell, union_k0
from benchmarks.kernels.floors import (
    BANK_OVER_PLAIN,
    REFERENCE_CARD,
    Card,
    Work,
    combine_work,
    dequantize_work,
    dispatch_work,
    expert_mlp_work,
    routing_work,
    targets,
)
from benchmarks.kernels.registry import OWN, Entry
from benchmarks.kernels.timing import Arm, Window
from benchmarks.windows import spread
from thermoe.types import Kind, SysState

Row = dict[str, Any]
SUSTAINED_TOKENS = 1024  # from here on short rounds flatter: the card reaches its power limit
DIGITS = 5


def work_of(entry: Entry, cell: Cell, dtype: str, distinct_experts: float) -> Work:
    """What one execution of the entry on one layer asks for."""
    if entry.op == "expert_mlp":
        return expert_mlp_work(cell.shape, dtype, cell.num_tokens, distinct_experts)
    if entry.op == "routing":
        return routing_work(cell.shape, cell.num_tokens, plan=entry.plan_included)
    if entry.op == "dispatch":
        return dispatch_work(cell.shape, cell.num_tokens)
    if entry.op == "combine":
        return combine_work(cell.shape, cell.num_tokens)
    return dequantize_work(cell.shape, dtype)


def row_of(arm: Arm, card: Card) -> Row:
    """One row; figures that were not obtained are None."""
    entry, cell, dtype = arm.entry, arm.cell, arm.dtype
    shape, distinct = cell.shape, cell.distinct_experts(arm.num_layers, union=entry.unites)
    work = work_of(entry, cell, dtype, distinct)
    assert arm.verdict is not None
    return {
        "op": entry.op,
        "impl": entry.impl,
        "shape": {"D": shape.hidden_size, "I": shape.inter_size, "E": shape.num_experts, "k": shape.top_k},
        "shape_name": cell.shape_name,
        "dtype": dtype_on(cell.device, dtype),
        "tokens": cell.num_tokens,
        "distinct_experts": round(distinct, 2),
        "plan_included": entry.plan_included,
        "policy": entry.policy.replace("union", f"union_k0_{union_k0(shape)}") if entry.policy else None,
        "layers": arm.num_layers,
        "latency_us": spread(arm.rounds_us, DIGITS),
        **_sustained(arm.windows),
        "floor_us": _short(work.floor_us(card, dtype)),
        "floor_us_reference_card": _short(work.floor_us(REFERENCE_CARD, dtype)),
        "bound_by": _bound(entry, work, card, dtype),
        **_targets(arm, work, card),
        "rel_error": _short(arm.verdict.rel_error) if arm.verdict.rel_error < float("inf") else None,
        "wrong": arm.verdict.wrong,
        "kind": str(Kind.MEASURED),
    }


def dtype_on(device: torch.device, dtype: str) -> str:
    """A CPU multiplies what is bf16 on a GPU in float32."""
    return "f32" if dtype == "bf16" and device.type != "cuda" else dtype


def _bound(entry: Entry, work: Work, card: Card, dtype: str) -> str:
    """What sets the floor; routing and the plan move so little that nothing but their launch can."""
    if entry.op in ("routing", "dispatch"):
        return "launch"
    return "memory" if work.bound_by_memory(card, dtype) else "matrix"


def _sustained(windows: Sequence[Window]) -> Row:
    """Medians over the windows."""
    sensors = [w.sensors for w in windows if w.sensors is not None]
    masks = [w.throttle_reasons for w in windows if w.throttle_reasons is not None]
    mask = 0
    for reasons in masks:
        mask |= reasons
    return {
        "latency_us_sustained": _median([1e6 * w.layer_s for w in windows]),
        "energy_mj": energy_mj(windows),
        "energy_mj_integrated": energy_mj(windows, integrated=True),
        "power_w": _median([s.power_counter_w for s in sensors]),
        "temp_c": _median([s.temp_c for s in sensors]),
        "sm_clock_mhz": _median([s.sm_clock_mhz for s in sensors]),
        "throttled": any(bool(s.throttled) for s in sensors) if sensors else None,
        "throttle_reasons": mask if masks else None,
    }


def energy_mj(windows: Sequence[Window], *, integrated: bool = False) -> float | None:
    """Millijoules of a layer by the energy counter or by integrated instant power, median over the windows."""
    values = []
    for window in windows:
        if window.sensors is not None:
            power_w = window.sensors.power_integrated_w if integrated else window.sensors.power_counter_w
            values.append(None if power_w is None else 1e3 * power_w * window.layer_s)
    return _median(values)


def _targets(arm: Arm, work: Work, card: Card) -> Row:
    if arm.entry.impl != OWN or not arm.entry.plan_included or arm.entry.policy not in (None, "union"):
        return dict.fromkeys(("target_us", "target_mj", "target_us_this_card", "target_mj_this_card"))
    figures = targets((arm.entry.op, arm.cell.shape_name, arm.dtype, arm.cell.num_tokens), work, card)
    return {name: None if value is None else _short(value) for name, value in figures.items()}


def set_bank_targets(rows: Sequence[Row]) -> None:
    """The nested bank at int4 has to stay within 5 % of plain int4 in the same run."""
    plain = {_place(row): row for row in rows if row["dtype"] == "int4" and row["impl"] == OWN}
    for row in rows:
        beside = plain.get(_place(row)) if row["dtype"] == "bank4" and row["op"] == "expert_mlp" else None
        if beside is not None and row["impl"] == OWN:
            measured_us = time_us(beside)
            row["target_us_this_card"] = None if measured_us is None else _short(BANK_OVER_PLAIN * measured_us)


def _place(row: Row) -> tuple[str, str, int, bool]:
    return row["op"], row["shape_name"], row["tokens"], row["plan_included"]


def time_us(row: Row) -> float | None:
    """The figure that counts: sustained where short rounds would flatter."""
    if row["tokens"] >= SUSTAINED_TOKENS and row["latency_us_sustained"] is not None:
        return float(row["latency_us_sustained"])
    return None if row["latency_us"] is None else float(row["latency_us"]["median"])


def row_line(row: Row) -> str:
    """A row in a line of text."""
    plan = "" if row["plan_included"] or row["op"] not in ("expert_mlp", "routing") else " (no plan)"
    name = f"{row['op']} {row['impl']}{plan} {row['policy'] or row['dtype']} {row['shape_name']} T={row['tokens']}"
    if row["wrong"]:
        return f"{name}: WRONG, not timed: {row['wrong']}"
    latency, floor_us, took_us = row["latency_us"], row["floor_us"], time_us(row)
    parts = [f"{name}: {latency['median']:.4g} us ({latency['low']:.4g}-{latency['high']:.4g})"]
    if row["latency_us_sustained"] is not None:
        parts.append(f"sustained {row['latency_us_sustained']:.4g} us")
    if row["energy_mj"] is not None:
        parts.append(f"{row['energy_mj']:.4g} mJ ({row['energy_mj_integrated'] or 0:.4g} integrated)")
        parts.append(f"{row['power_w']:.0f} W{' THROTTLED' if row['throttled'] else ''}")
    parts.append(f"{row['distinct_experts']:.1f} experts")
    parts.append(f"floor {floor_us:.4g} us (reference card {row['floor_us_reference_card']:.4g})")
    assert took_us is not None
    parts.append(f"{took_us / floor_us:.2f} floors, error {row['rel_error']:.1e}")
    parts += [_target_text(row, took_us, "us"), _target_text(row, row["energy_mj"], "mj")]
    return ", ".join(part for part in parts if part)


def _target_text(row: Row, got: float | None, unit: str) -> str:
    here, reference = row[f"target_{unit}_this_card"], row[f"target_{unit}"]
    if here is None or got is None:
        return ""
    of_reference = "" if reference is None else f", reference card {reference:.4g}"
    return f"target {here:.4g} {unit}{of_reference}: {'met' if got <= here else f'MISSED by {got / here:.2f} x'}"


def environment(
    device: torch.device,
    read: Callable[[], SysState] | None,
    settings: dict[str, Any],
    calibration: dict[str, Any],
    revision: str | None,
) -> dict[str, Any]:
    """The `env` of the file."""
    return describe(device, read, settings) | {
        "date": datetime.now(UTC).date().isoformat(),
        "git_revision": revision or git_revision(),
        "calibration": calibration,
    }


def git_revision() -> str | None:
    """Revision of this checkout, marked where files differ from it; None where there is none."""
    root = Path(__file__).parents[2]
    try:
        outputs = [
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return outputs[0].strip() + ("+changes" if outputs[1].strip() else "")


def write(path: Path, env: dict[str, Any], rows: Sequence[Row], skipped: Sequence[Row]) -> None:
    """Replace the file with all rows so far, so that an interrupted run leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema": SCHEMA_VERSION, "env": env, "rows": list(rows), "skipped": list(skipped)}
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    beside.replace(path)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _short(statistics.median(known)) if known else None


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
