"""What a model is fitted on: cases and what they cost, from a database or a plain table. B rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from thermoe.cost.boards import Board, Boards, boards_by_occasion, boards_of
from thermoe.cost.cases import DTYPE_BITS, Cases
from thermoe.cost.database import CostDatabase
from thermoe.cost.loads import even_loads
from thermoe.cost.rows import CostRow
from thermoe.cost.work import OPERATIONS
from thermoe.types import BoolArray, FloatArray, IntArray, Kind

LawKey = tuple[str, str, str]
"""Operation, implementation, format of the weights."""


@dataclass(frozen=True, slots=True)
class Observations:
    """Measured rows of one operation.

    Attributes:
        cases: What ran.
        latency_s: Below the power limit where it was timed so [s], (B,).
        window_s: Latency while energy was measured [s], (B,).
        energy_j: Energy with idle power in it [J], (B,); NaN where not measured.
        temp_c: Core temperature of the window [deg C], (B,); NaN where not measured.
        throttled: Whether clocks were held back in the window (B,).
        boards: Which board each ran on.
    """

    cases: Cases
    latency_s: FloatArray
    window_s: FloatArray
    energy_j: FloatArray
    temp_c: FloatArray
    throttled: BoolArray
    boards: Boards

    def __len__(self) -> int:
        return len(self.latency_s)

    @property
    def power_w(self) -> FloatArray:
        """Mean board power [W], (B,); NaN where not measured."""
        return self.energy_j / self.window_s

    @property
    def reference_energy_j(self) -> FloatArray:
        """`energy_j` as the board that others are compared with would have taken it (B,) [J]."""
        return self.boards.to_reference_j(self.energy_j, self.window_s, self.throttled)

    def take(self, chosen: Any) -> "Observations":
        """The rows of an index or a mask."""
        names = (f.name for f in fields(self) if f.name not in ("cases", "boards"))
        columns = {name: getattr(self, name)[chosen] for name in names}
        return Observations(cases=self.cases.take(chosen), boards=self.boards.take(chosen), **columns)

    def groups(self) -> IntArray:
        """Number of the shape of each row (B,)."""
        return np.unique(self.cases.sizes(), axis=0, return_inverse=True)[1].ravel().astype(np.int64)

    def by_key(self) -> dict[LawKey, IntArray]:
        """Rows of each implementation and format, in the order they come."""
        found: dict[LawKey, list[int]] = {}
        for i, (impl, dtype) in enumerate(zip(self.cases.impl, self.cases.dtype, strict=True)):
            found.setdefault((self.cases.op, impl, dtype), []).append(i)
        return {key: np.array(rows) for key, rows in found.items()}


def group_database(database: CostDatabase, told_by: Sequence[CostRow] | None = None) -> dict[str, Observations]:
    """Observations by operation, in the order of the file; what the model does not know is left out.

    `told_by` are rows that tell the boards, if they are not those of the database.
    """
    by_op: dict[str, list[CostRow]] = {}
    for row in database.rows:
        if row.op in OPERATIONS and row.dtype in DTYPE_BITS and row.kind is Kind.MEASURED:
            by_op.setdefault(row.op, []).append(row)
    known, reference = boards_by_occasion(database.rows if told_by is None else told_by)
    return {op: _of_rows(op, rows, known, reference) for op, rows in by_op.items()}


def cases_of_rows(op: str, rows: list[CostRow]) -> Cases:
    """Cases of one operation's rows."""

    def column(name: str) -> FloatArray:
        return np.array([getattr(r, name) for r in rows], dtype=np.float64)

    ones = np.ones(len(rows))
    return Cases(
        op=op,
        impl=[r.impl for r in rows],
        dtype=[r.dtype for r in rows],
        hidden_size=column("hidden_size"),
        inter_size=column("inter_size"),
        num_experts=column("num_experts"),
        top_k=column("top_k"),
        tokens=column("tokens"),
        loads=even_loads(column("routed_rows"), column("active_experts"), column("skew")),
        context=np.array([getattr(r, "context", 1) for r in rows], dtype=np.float64),
        ranks=ones,
        splits=ones,
        skew=np.zeros(len(rows)),
    )


def _of_rows(op: str, rows: list[CostRow], known: Mapping[str, Board], reference: Board | None) -> Observations:
    window_us = [r.latency_us if r.latency_sustained_us is None else r.latency_sustained_us for r in rows]
    return Observations(
        cases_of_rows(op, rows),
        np.array([r.latency_us for r in rows]) * 1e-6,
        np.array(window_us) * 1e-6,
        np.array([np.nan if r.energy_mj is None else r.energy_mj * 1e-3 for r in rows]),
        np.array([np.nan if r.temp_c is None else r.temp_c for r in rows]),
        np.array([bool(r.throttled) for r in rows]),
        boards_of(rows, known, reference),
    )
