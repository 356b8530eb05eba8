"""One expert MLP call beside the operations it is made of: which rows of a database belong together.

A call of Thermoe's kernel takes tokens and returns tokens, so its parts are dispatch (rows into expert order),
dequantising where weights are packed, fc1, activation, fc2 and combine. A call of torch's products takes rows in
expert order, so its parts are the middle three. Each part is measured by itself at the same sizes, rows and experts.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from thermoe.cost.cases import DTYPE_BITS
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import cases_of_rows
from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.cost.work import work_of_cases
from thermoe.types import Kind

FUSED_OP, FUSED_IMPL = "expert_mlp", "thermoe"
FLOATS = ("bfloat16", "float16", "float32")
_LINEARS = ("grouped_mm", "loop", "batched_mm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one operation took, and the work it did.

    Attributes:
        op, impl, dtype: What ran.
        latency_s: Below the power limit [s].
        window_s: While energy was measured, else `latency_s` [s].
        energy_j: With idle power in it [J]; None where unknown.
        bytes_moved, flops: Least traffic [byte] and operations.
        kind: Of the figures.
        rows: Measured rows behind it; 0 for a prediction.
    """

    op: str
    impl: str
    dtype: str
    latency_s: float
    window_s: float
    energy_j: float | None
    bytes_moved: float
    flops: float
    kind: Kind
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A measured expert MLP call and its parts.

    Attributes:
        row: A row of the call: its device, sizes and load.
        fused: Its cost, the median over occasions.
        parts: In the order they would run.
        missing: Parts that are neither measured nor predicted; without them nothing can be said.
    """

    row: CostRow
    fused: Cost
    parts: tuple[Cost, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Need:
    """A part of a call: operation, format, implementations in order of preference, the fields that must agree."""

    op: str
    dtype: str
    impls: tuple[str, ...]
    same: tuple[str, ...]


_LAYER = ("hidden_size", "inter_size", "num_experts", "top_k")
_LOADED = (*_LAYER, "routed_rows", "active_experts", "load")


def find_calls(rows: Iterable[CostRow], model: KernelCostModel | None = None) -> list[Call]:
    """Every expert MLP call that the rows hold, with its parts from rows of the same device, software and kind.

    Args:
        rows: Of any operations and devices.
        model: Predicts parts that were not measured; None to leave such calls incomplete.
    """
    groups: dict[tuple[DeviceKey, Kind], list[CostRow]] = {}
    for row in rows:
        groups.setdefault((row.device, row.kind), []).append(row)
    found: list[Call] = []
    for mine in groups.values():
        index = _Index(mine)
        found += [_call(same, index, model) for same in _calls(mine)]
    return found


def cost_of_rows(rows: Sequence[CostRow]) -> Cost:
    """Medians of the rows of one case."""
    joules = [r.energy_mj * 1e-3 for r in rows if r.energy_mj is not None]
    windows = [r.latency_sustained_us for r in rows if r.energy_mj is not None and r.latency_sustained_us is not None]
    first, latency_us = rows[0], statistics.median(r.latency_us for r in rows)
    bytes_moved, flops = _work(first)
    return Cost(
        op=first.op,
        impl=first.impl,
        dtype=first.dtype,
        latency_s=latency_us * 1e-6,
        window_s=(statistics.median(windows) if windows else latency_us) * 1e-6,
        energy_j=statistics.median(joules) if joules else None,
        bytes_moved=bytes_moved,
        flops=flops,
        kind=first.kind,
        rows=len(rows),
    )


def _calls(rows: Sequence[CostRow]) -> list[list[CostRow]]:
    found: dict[object, list[CostRow]] = {}
    for row in rows:
        if row.op == FUSED_OP and row.dtype in DTYPE_BITS:
            found.setdefault(row.case_key, []).append(row)
    return list(found.values())


def _call(same: Sequence[CostRow], index: "_Index", model: KernelCostModel | None) -> Call:
    row, parts, missing = same[0], [], []
    for need in _needs(row):
        part = index.find(need, row) or (None if model is None else _predicted(model, need, row))
        if part is None:
            missing.append(f"{need.op} in {need.dtype}")
        else:
            parts.append(part)
    return Call(row=row, fused=cost_of_rows(same), parts=tuple(parts), missing=tuple(missing))


def _needs(row: CostRow) -> list[_Need]:
    dtype = row.dtype if row.dtype in FLOATS else "bfloat16"
    linears = (row.impl,) if row.impl in _LINEARS else _LINEARS
    middle = [
        _Need("linear_fc1", dtype, linears, _LOADED),
        _Need("activation", dtype, ("torch",), ("inter_size", "routed_rows")),
        _Need("linear_fc2", dtype, linears, _LOADED),
    ]
    if row.dtype not in FLOATS:
        middle.insert(
            0, _Need("dequant_unpack_op", row.dtype, ("torch",), ("hidden_size", "inter_size", "active_experts"))
        )
    if row.impl != FUSED_IMPL:
        return middle
    around = (*_LAYER, "routed_rows")
    # Thermoe's own dispatch is a plan only: its kernel gathers the rows itself.
    return [
        _Need("dispatch", dtype, ("torch",), around),
        *middle,
        _Need("combine", dtype, ("thermoe", "torch"), around),
    ]


class _Index:
    """Rows of parts by operation, format and implementation."""

    def __init__(self, rows: Iterable[CostRow]) -> None:
        self._rows: dict[tuple[str, str, str], list[CostRow]] = {}
        for row in rows:
            self._rows.setdefault((row.op, row.dtype, row.impl), []).append(row)

    def find(self, need: _Need, call: CostRow) -> Cost | None:
        """The first implementation that was measured with the same fields; of several loads the nearest."""
        for impl in need.impls:
            alike = [
                r
                for r in self._rows.get((need.op, need.dtype, impl), ())
                if all(getattr(r, name) == getattr(call, name) for name in need.same)
            ]
            if alike:
                nearest = min(alike, key=lambda r: _distance(r, call)).case_key
                return cost_of_rows([r for r in alike if r.case_key == nearest])
        return None


def _distance(row: CostRow, call: CostRow) -> tuple[bool, float]:
    return row.load != call.load, abs(float(np.log(row.active_experts / call.active_experts)))


def _predicted(model: KernelCostModel, need: _Need, call: CostRow) -> Cost | None:
    """What a fitted model says of a part; None where it was not fitted to the operation in this format."""
    for impl in need.impls:
        fitted = model.operations_.get((need.op, impl, need.dtype))
        if fitted is None:
            continue
        cases = replace(cases_of_rows(need.op, [call]), impl=[impl], dtype=[need.dtype])
        priced, work = model.predict_cases(cases), work_of_cases(cases)
        has_energy = fitted.energy_log_error is not None
        return Cost(
            op=need.op,
            impl=impl,
            dtype=need.dtype,
            latency_s=float(priced.latency_s[0]),
            window_s=float(priced.latency_s[0]),
            energy_j=float(priced.energy_j[0]) if has_energy else None,
            bytes_moved=float(work.weight_bytes[0] + work.row_bytes[0]),
            flops=float(work.flops[0]),
            kind=Kind.PREDICTED,
            rows=0,
        )
    return None


def _work(row: CostRow) -> tuple[float, float]:
    """Bytes and operations, as the row counts them or as physics does."""
    if row.bytes_moved is not None and row.flops is not None:
        return row.bytes_moved, row.flops
    work = work_of_cases(cases_of_rows(row.op, [row]))
    counted = float(work.weight_bytes[0] + work.row_bytes[0]), float(work.flops[0])
    return row.bytes_moved or counted[0], counted[1] if row.flops is None else row.flops
