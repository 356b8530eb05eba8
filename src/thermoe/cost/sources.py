"""Whatever a model may be fitted to or compared with, as observations by operation."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thermoe.cost.cases import DTYPE_BITS
from thermoe.cost.database import CostDatabase
from thermoe.cost.observations import Observations, group_database
from thermoe.cost.rows import CostRow, without_smoke
from thermoe.cost.tables import group_table
from thermoe.cost.work import OPERATIONS
from thermoe.errors import DataError
from thermoe.types import Kind

if TYPE_CHECKING:
    import pandas as pd

    Source = CostDatabase | pd.DataFrame
    Sources = Source | Sequence[Source]

A_TABLE = "a table"


def observations_of(data: "Sources | None") -> tuple[dict[str, Observations], str]:
    """Observations by operation, and the GPU they belong to.

    Args:
        data: A database, a plain table, or several of different operations.

    Raises:
        DataError: Nothing to use, more than one GPU, or one operation in two places.
    """
    if data is None:
        raise DataError("nothing to fit: give a cost database, a table, or shapes with their latency")
    groups: dict[str, Observations] = {}
    gpus: set[str] = set()
    for given in data if isinstance(data, Sequence) else [data]:
        source = _costs_alone(given)
        found = group_database(source) if isinstance(source, CostDatabase) else group_table(source)
        twice = sorted(set(groups) & set(found))
        if twice:
            raise DataError(f"two tables hold {', '.join(twice)}: join them, so that one table has all rows of it")
        groups |= found
        gpus |= {r.device.gpu for r in source.rows} if isinstance(source, CostDatabase) else set()
    if len(gpus) > 1:
        raise DataError(f"the database holds {', '.join(sorted(gpus))}: select one GPU and fit again")
    if not groups:
        raise DataError(f"no measured row of {', '.join(OPERATIONS)} to fit: profile some first")
    return groups, next(iter(gpus), A_TABLE)


def left_out(data: "Sources") -> list[str]:
    """How many rows of databases no fit uses and why, a clause for each reason."""
    sources = data if isinstance(data, Sequence) else [data]
    reasons = Counter(
        reason
        for source in sources
        if isinstance(source, CostDatabase)
        for row in source.rows
        if (reason := _why_unused(row))
    )
    return [f"{count} row{'s' if count > 1 else ''} {reason}" for reason, count in reasons.items()]


def _why_unused(row: CostRow) -> str:
    """Why a row is no measurement of an operation that the model knows; empty where it is one."""
    if row.is_smoke:
        return "of smoke runs, which show only that a case runs"
    if row.op not in OPERATIONS:
        return f"of operation {row.op}, which the model does not know"
    if row.dtype not in DTYPE_BITS:
        return f"in {row.dtype}, a format that the model does not know"
    return "" if row.kind is Kind.MEASURED else f"of kind {row.kind}, not measured"


def _costs_alone(source: "Source") -> "Source":
    """Without rows that only show that a case runs."""
    return CostDatabase(without_smoke(source.rows)) if isinstance(source, CostDatabase) else source
