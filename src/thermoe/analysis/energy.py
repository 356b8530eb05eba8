"""Which of the recorded energies an arm's figures stand on: one source and one kind, never a mixture."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from thermoe.types import Kind

# Better founded first: the counter counts every joule, the integral samples power, a prediction is neither.
_SOURCES = (("counter", "energy_j"), ("integrated", "energy_j_integrated"), ("predicted", "predicted_energy_j"))
_KINDS = (Kind.MEASURED, Kind.REPLAYED, Kind.SIMULATED, Kind.PREDICTED)


def with_energy(batches: pd.DataFrame) -> pd.DataFrame:
    """A copy with `used_j` [J], `used_kind` and `used_source`; batches of another source or kind are null.

    Args:
        batches: The table of batches, any number of arms.
    """
    result = batches.assign(used_j=np.nan, used_kind=None, used_source=None)
    for _, arm in batches.groupby(["workload", "strategy"], sort=False):
        chosen = _choose(arm)
        if chosen is not None:
            source, kind, energy_j = chosen
            rows = energy_j.index
            result.loc[rows, "used_j"] = energy_j
            result.loc[rows, "used_kind"] = str(kind)
            result.loc[rows, "used_source"] = source
    return result


def _choose(arm: pd.DataFrame) -> "tuple[str, Kind, pd.Series[float]] | None":
    counted = arm["num_tokens"] > 0
    for source, column, kind, has_kind in _candidates(arm):
        rows = counted & has_kind & arm[column].notna()
        if rows.any():
            return source, kind, arm.loc[rows, column]
    return None


def _candidates(arm: pd.DataFrame) -> "Iterator[tuple[str, str, Kind, pd.Series[bool]]]":
    for source, column in _SOURCES:
        for kind in _KINDS:
            if (source == "predicted") == (kind is Kind.PREDICTED):
                same = arm["energy_kind"] == str(kind)
                yield source, column, kind, same if source != "predicted" else arm[column].notna()
