"""What the tables of a run folder hold, and how a table read from disk is brought into that form."""

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import pandas as pd

from thermoe.errors import DataError
from thermoe.types import SysState

KEY = ("workload", "seed", "strategy", "batch_index")
TABLES = ("batches", "steps", "experts", "telemetry")

_TEXT_KEYS = ("workload", "strategy")
_TEXT: Mapping[str, tuple[str, ...]] = {
    "batches": ("energy_kind",),
    "steps": (),
    "experts": (),
    "telemetry": ("source", "kind"),
}
_LISTS: Mapping[str, tuple[str, ...]] = {
    "batches": (),
    "steps": (),
    "experts": ("tokens_per_expert", "loads_per_expert", "time_s_per_expert"),
    "telemetry": (),
}
LOSS_COLUMNS = (
    "loss_power",
    "loss_temp",
    "loss_latency",
    "loss_throughput",
    "loss_energy",
    "loss_total",
    "loss_task",
    "loss_aux",
)
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "batches": (
        *("num_tokens", "num_steps", "nll_sum", "num_predictions", "energy_j", "energy_j_integrated"),
        *("latency_s", "predicted_energy_j", "predicted_latency_s", "power_w_mean", "temp_c_mean", "temp_c_peak"),
        *("distinct_experts_mean", "gate_mass_mean", "changed_slots_mean", "bits_mean"),
        *("routing_overhead_s", "adaptation_overhead_s", "wall_s", "throttled", "started_wall_s"),
    ),
    "steps": (
        *("step", "time_s", "latency_s", "energy_j", "num_tokens", "nll_sum", "distinct_experts_mean"),
        *("gate_mass_mean", "price", "power_w", "temp_c", "thermal_headroom_c", "target"),
        *LOSS_COLUMNS,
    ),
    "experts": ("layer", "distinct_experts_mean", "gate_mass_mean", "changed_slots_mean"),
    "telemetry": tuple(f.name for f in fields(SysState) if f.name not in ("source", "kind")),
}


def columns_of(table: str) -> tuple[str, ...]:
    """Names of all columns of a table that the analysis reads, the key first."""
    return (*KEY, *_NUMBERS[table], *_TEXT[table], *_LISTS[table])


def conform(table: str, frame: pd.DataFrame) -> pd.DataFrame:
    """A copy with every column of the schema: absent ones null, numbers as float64, sorted by nothing.

    Raises:
        DataError: The key is incomplete, or a column that must hold numbers holds something else.
    """
    missing = [name for name in KEY if name not in frame.columns]
    if missing and len(frame.columns):
        raise DataError(f"table {table} has no column {', '.join(missing)}: it was not written by thermoe run")
    columns: dict[str, object] = {}
    for name in columns_of(table):
        if name not in frame.columns:
            columns[name] = np.full(len(frame), np.nan) if name in _NUMBERS[table] else [None] * len(frame)
        elif name in _NUMBERS[table]:
            columns[name] = _numbers(table, name, frame[name])
        else:
            columns[name] = frame[name].to_numpy()
    result = pd.DataFrame(columns)
    for name in _TEXT_KEYS:
        result[name] = result[name].astype(str).astype(object)
    return result


def _numbers(table: str, name: str, column: "pd.Series[float]") -> object:
    try:
        values = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as err:
        raise DataError(f"column {name} of table {table} holds something else than numbers: {err}") from err
    return np.where(np.isfinite(values), values, np.nan)


def in_order(names: "pd.Series[str]") -> list[str]:
    """Distinct names in order of appearance, `baseline` first."""
    distinct = [str(name) for name in names.unique()]
    return sorted(distinct, key=lambda name: name != "baseline")
