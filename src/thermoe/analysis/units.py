"""What counts as one independent observation: the same input under several seeds or in several passes is one."""

from collections.abc import Mapping
from typing import Any

import pandas as pd


def with_units(batches: pd.DataFrame, config: Mapping[str, Any]) -> pd.DataFrame:
    """A copy with `unit`: the number of the input that a batch computed, within its workload.

    A workload that is gone through several times numbers its batches on. Where a run was interrupted before its
    passes could be told apart, every batch is a unit of its own.

    Args:
        batches: The table of batches, any number of arms.
        config: The resolved configuration, of which `passes` is read.
    """
    passes = config.get("passes")
    passes = passes if isinstance(passes, int) and passes > 0 else 1
    length = batches.groupby("workload")["batch_index"].transform("max") + 1
    per_pass = (length / passes).where(length % passes == 0, length)
    return batches.assign(unit=batches["batch_index"] % per_pass)
