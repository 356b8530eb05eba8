"""What a model is fitted on: one set of arrays from a database or a plain table."""

from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from thermoe.cost.database import CostDatabase
from thermoe.cost.work import expected_distinct_experts
from thermoe.errors import DataError
from thermoe.types import BoolArray, FloatArray, IntArray, Kind, MoEShape

if TYPE_CHECKING:
    import pandas as pd

DTYPE_BITS = {
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "fp8": 8,
    "fp8_block": 8,
    "int8": 8,
    "int4": 4,
    "int4_wo": 4,
}
_NEEDED = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts")


@dataclass(frozen=True, slots=True)
class Observations:
    """Measured rows of one operation, implementation and precision, B entries.

    Attributes:
        sizes: Hidden size, expert width, experts, top-k (B, 4).
        routed_rows, distinct_experts: Load of each row (B,).
        latency_s: Below the power limit where it was timed so [s], (B,).
        window_s: Latency while energy was measured [s], (B,).
        energy_j: Energy with idle power in it [J], (B,); NaN where not measured.
        temp_c: Core temperature of the window [deg C], (B,); NaN where not measured.
        throttled: Whether clocks were held back in the window (B,).
    """

    sizes: IntArray
    routed_rows: FloatArray
    distinct_experts: FloatArray
    latency_s: FloatArray
    window_s: FloatArray
    energy_j: FloatArray
    temp_c: FloatArray
    throttled: BoolArray

    def __len__(self) -> int:
        return len(self.latency_s)

    def take(self, chosen: Any) -> "Observations":
        """The rows of an index or a mask."""
        return Observations(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def shape(self, row: int) -> MoEShape:
        """The layer of one row."""
        hidden_size, inter_size, num_experts, top_k = self.sizes[row].tolist()
        return MoEShape(
            num_layers=1, hidden_size=hidden_size, inter_size=inter_size, num_experts=num_experts, top_k=top_k
        )

    def groups(self) -> IntArray:
        """Number of the shape of each row (B,)."""
        return np.unique(self.sizes, axis=0, return_inverse=True)[1].ravel().astype(np.int64)


LawKey = tuple[str, str, int]


def group_database(database: CostDatabase, ops: tuple[str, ...]) -> dict[LawKey, Observations]:
    """Observations by (operation, implementation, bits), in the order of the file; other operations are left out."""
    by_key: dict[LawKey, list[dict[str, Any]]] = {}
    for row in database.rows:
        bits = DTYPE_BITS.get(row.dtype)
        if row.op not in ops or bits is None or row.kind is not Kind.MEASURED:
            continue
        window_us = row.latency_sustained_us if row.latency_sustained_us is not None else row.latency_us
        line = {
            "sizes": [row.hidden_size, row.inter_size, row.num_experts, row.top_k],
            "routed_rows": row.routed_rows,
            "distinct_experts": row.active_experts,
            "latency_s": row.latency_us * 1e-6,
            "window_s": window_us * 1e-6,
            "energy_j": np.nan if row.energy_mj is None else row.energy_mj * 1e-3,
            "temp_c": np.nan if row.temp_c is None else row.temp_c,
            "throttled": bool(row.throttled),
        }
        by_key.setdefault((row.op, row.impl, bits), []).append(line)
    return {key: _from_lines(lines) for key, lines in by_key.items()}


def group_table(table: "pd.DataFrame") -> dict[LawKey, Observations]:
    """Observations of a plain table of MoE layers, as `thermoe fit` takes it.

    Tables that do not say how many experts were touched get the number that random routing touches.

    Raises:
        DataError: Columns are missing or hold what cannot be right.
    """
    missing = [c for c in _NEEDED if c not in table]
    latency = next((c for c in ("latency_s", "latency_ms") if c in table), None)
    if missing or latency is None:
        raise DataError(
            f"the table lacks {', '.join([*missing, *([] if latency else ['latency_s or latency_ms'])])}; "
            "a table of MoE layers needs " + ", ".join(_NEEDED) + " and a latency"
        )
    if not len(table):
        raise DataError("the table has no rows")
    latency_s = _column(table, latency) * (1e-3 if latency == "latency_ms" else 1.0)
    energy_j = _table_energy(table, latency_s)
    tokens, top_k = _column(table, "num_tokens"), _column(table, "topk")
    experts = _column(table, "num_experts")
    distinct = np.array(
        [expected_distinct_experts(int(e), int(k), t) for e, k, t in zip(experts, top_k, tokens, strict=True)]
    )
    if "distinct_experts" in table:
        distinct = _column(table, "distinct_experts")
    everything = Observations(
        sizes=np.stack(
            [_column(table, c).astype(np.int64) for c in ("hidden_size", "inter_size", "num_experts", "topk")], 1
        ),
        routed_rows=tokens * top_k,
        distinct_experts=distinct,
        latency_s=latency_s,
        window_s=latency_s,
        energy_j=energy_j,
        temp_c=np.full(len(table), np.nan),
        throttled=np.zeros(len(table), dtype=np.bool_),
    )
    keys = _table_keys(table)
    return {key: everything.take([i for i, k in enumerate(keys) if k == key]) for key in dict.fromkeys(keys)}


def _from_lines(lines: list[dict[str, Any]]) -> Observations:
    columns: dict[str, Any] = {f.name: np.array([line[f.name] for line in lines], float) for f in fields(Observations)}
    exact = {"sizes": columns["sizes"].astype(np.int64), "throttled": columns["throttled"].astype(np.bool_)}
    return Observations(**columns | exact)


def _table_energy(table: "pd.DataFrame", latency_s: FloatArray) -> FloatArray:
    if "energy_j" in table:
        return _column(table, "energy_j", may_be_missing=True)
    if "power_w" in table:
        return _column(table, "power_w", may_be_missing=True) * latency_s
    return np.full(len(table), np.nan)


def _table_keys(table: "pd.DataFrame") -> list[LawKey]:
    dtype_column = next((c for c in ("dtype", "moe_dtype") if c in table), None)
    dtypes: list[Hashable] = list(table[dtype_column]) if dtype_column else ["bfloat16"] * len(table)
    unknown = sorted({str(d) for d in dtypes} - set(DTYPE_BITS))
    if unknown:
        raise DataError(f"the table's dtype {', '.join(unknown)} is not known: choose from {', '.join(DTYPE_BITS)}")
    ops = list(table["op"]) if "op" in table else ["expert_mlp"] * len(table)
    impls = list(table["kernel_source"]) if "kernel_source" in table else ["table"] * len(table)
    return [(str(op), str(impl), DTYPE_BITS[str(d)]) for op, impl, d in zip(ops, impls, dtypes, strict=True)]


def _column(table: "pd.DataFrame", name: str, *, may_be_missing: bool = False) -> FloatArray:
    try:
        values = table[name].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise DataError(f"the table's column {name} holds something other than numbers") from err
    wrong = ~(np.isfinite(values) & (values > 0)) & ~(may_be_missing & np.isnan(values))
    if wrong.any():
        raise DataError(
            f"the table's column {name} holds {values[wrong][0]:g} in row {int(wrong.argmax())}: needs positive numbers"
        )
    return np.asarray(values, dtype=np.float64)
