"""What each strategy saves and costs against `baseline`, batch by batch on the same input."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from thermoe.analysis.energy import with_energy
from thermoe.analysis.schema import in_order
from thermoe.analysis.statistics import Interval, bootstrap, cliffs_delta, cohens_dz, holm, sign_flip_p_value
from thermoe.analysis.summary import REFERENCE, scored
from thermoe.analysis.units import with_units
from thermoe.types import FloatArray

_PAIR = ["seed", "batch_index"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """One quantity of a strategy against baseline on the same batches.

    Attributes:
        change_pct: Relative change of the pooled quantity [%], negative is less.
        num_units: Pairs it stands on (inputs: seeds and passes pooled).
        p_value: Two-sided sign-flip permutation test on the differences per unit.
        p_holm: The same, adjusted for the strategies compared on this workload.
        cliffs_delta: Effect size over all pairs of units, in [-1, 1], negative is less.
        cohens_dz: Paired effect size: mean difference over its standard deviation.
    """

    change_pct: Interval
    num_units: int
    p_value: float | None
    cliffs_delta: float | None
    cohens_dz: float | None
    p_holm: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A strategy against baseline on one workload; None where a side lacks the data.

    Energies are compared only when both come from the same source and are of the same kind.
    """

    workload: str
    strategy: str
    energy_kind: str | None
    energy: Paired | None
    perplexity: Paired | None


def compare_with_baseline(tables: Mapping[str, pd.DataFrame], config: Mapping[str, Any]) -> list[Comparison]:
    """Every strategy but `baseline` on every workload that has `baseline`.

    Args:
        tables: The tables of a run; only `batches` is read.
        config: Its resolved configuration.
    """
    batches = with_units(with_energy(tables["batches"]), config)
    result: list[Comparison] = []
    for workload in [str(name) for name in batches["workload"].unique()]:
        here = batches[batches["workload"] == workload]
        baseline = here[here["strategy"] == REFERENCE]
        found = [
            _compare(workload, name, here[here["strategy"] == name], baseline)
            for name in in_order(here["strategy"])
            if name != REFERENCE and len(baseline)
        ]
        result += _adjusted(found)
    return result


def _compare(workload: str, strategy: str, arm: pd.DataFrame, baseline: pd.DataFrame) -> Comparison:
    on = [*_PAIR, "unit", "used_kind", "used_source"]
    energy = arm[arm["used_j"].notna()].merge(baseline[baseline["used_j"].notna()], on=on, suffixes=("", "_base"))
    text = scored(arm).merge(scored(baseline), on=[*_PAIR, "unit"], suffixes=("", "_base"))
    return Comparison(
        workload=workload,
        strategy=strategy,
        energy_kind=str(energy["used_kind"].iloc[0]) if len(energy) else None,
        energy=_paired(energy, "used_j", "num_tokens", lambda ratio: ratio),
        perplexity=_paired(text, "nll_sum", "num_predictions", np.exp),
    )


def _paired(pairs: pd.DataFrame, amount: str, size: str, link: Callable[[FloatArray], FloatArray]) -> Paired | None:
    """Compare link(sum of amount / sum of size) of both sides; units are inputs, with seeds and passes pooled."""
    if pairs.empty:
        return None
    columns = [amount, size, f"{amount}_base", f"{size}_base"]
    sums = pairs.groupby("unit")[columns].sum().to_numpy(np.float64)

    def change_pct(s: FloatArray) -> FloatArray:
        return np.asarray(100.0 * (link(s[..., 0] / s[..., 1]) / link(s[..., 2] / s[..., 3]) - 1.0))

    own, reference = sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]
    return Paired(
        change_pct=bootstrap(sums, change_pct),
        num_units=len(sums),
        p_value=sign_flip_p_value(own - reference),
        cliffs_delta=cliffs_delta(own, reference),
        cohens_dz=cohens_dz(own - reference),
    )


def _adjusted(found: list[Comparison]) -> list[Comparison]:
    energy = holm([c.energy.p_value if c.energy else None for c in found])
    text = holm([c.perplexity.p_value if c.perplexity else None for c in found])
    return [
        replace(
            c,
            energy=replace(c.energy, p_holm=e) if c.energy else None,
            perplexity=replace(c.perplexity, p_holm=p) if c.perplexity else None,
        )
        for c, e, p in zip(found, energy, text, strict=True)
    ]
