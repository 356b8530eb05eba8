"""Whatever a model may be fitted to or compared with, as observations by operation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thermoe.cost.database import CostDatabase
from thermoe.cost.observations import Observations, group_database
from thermoe.cost.rows import without_smoke
from thermoe.cost.tables import group_table
from thermoe.cost.work import OPERATIONS
from thermoe.errors import DataError

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


def _costs_alone(source: "Source") -> "Source":
    """Without rows that only show that a case runs."""
    return CostDatabase(without_smoke(source.rows)) if isinstance(source, CostDatabase) else source
