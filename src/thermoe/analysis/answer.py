"""What the report says in words: the answer at the top, the limits at the end."""

from collections.abc import Sequence

from thermoe.analysis.comparison import Comparison
from thermoe.analysis.statistics import MIN_UNITS, Interval, reduction
from thermoe.analysis.summary import REFERENCE
from thermoe.analysis.units import with_units
from thermoe.analysis.view import RunView
from thermoe.types import Kind

_QUALITY_LOSS_PCT = 1.0


def answers(view: RunView, *, named: bool = False) -> list[str]:
    """One sentence per workload: the strategy that saves most at a perplexity loss of at most 1 %.

    Args:
        view: The run.
        named: Whether the sentence names the run.
    """
    result = []
    for workload in view.workloads:
        place = f"On {workload} ({view.label})" if named else f"On {workload}"
        found = [c for c in view.comparisons if c.workload == workload and c.energy]
        if found:
            result.append(f"{place}, {_sentence(found)}")
        else:
            result.append(f"{place}, nothing can be compared: it takes {REFERENCE} and energies of the same kind.")
    return result


def _sentence(found: Sequence[Comparison]) -> str:
    thrifty = [c for c in found if c.perplexity and c.perplexity.change_pct.value <= _QUALITY_LOSS_PCT]
    best = min(thrifty or found, key=lambda c: c.energy.change_pct.value if c.energy else 0.0)
    saved = reduction(best.energy.change_pct) if best.energy else Interval(0.0, None, None)
    text = f"{best.strategy} uses {abs(saved.value):.1f} % {'less' if saved.value >= 0 else 'more'} energy per token"
    interval = (
        "no interval" if saved.low is None else f"90 % interval of the saving {saved.low:.1f} to {saved.high:.1f} %"
    )
    text += f" than {REFERENCE} ({best.energy_kind}; {interval})"
    if best.perplexity:
        text += f" at {best.perplexity.change_pct.value:+.2f} % perplexity"
    if thrifty:
        return f"{text}: the largest saving that costs at most {_QUALITY_LOSS_PCT:g} % perplexity."
    if any(c.perplexity for c in found):
        return f"{text}: no strategy stays within {_QUALITY_LOSS_PCT:g} % perplexity."
    return f"{text}; perplexity was not recorded."


def limits(views: Sequence[RunView]) -> list[str]:
    """What the reader must know before believing the figures."""
    intervals = (
        "Intervals are 90 % percentile bootstrap intervals over batches (the same batch under several seeds or in "
        f"several passes is one unit); they are left out under {MIN_UNITS} batches and tend to be too narrow under "
        "about 20."
    )
    several = len(views) > 1
    return [s for view in views for s in _limits(view, f"{view.label}: " if several else "")] + [intervals]


def _limits(view: RunView, place: str) -> list[str]:
    batches = view.run.tables["batches"]
    units = batches.groupby(["workload", "strategy"])["batch_index"].nunique()
    result = [
        f"{place}Power, time and energy are {view.basis}; perplexity and expert counts are computed by the model."
    ]
    if view.kind == Kind.SIMULATED:
        result.append(
            f"{place}Simulated figures come from a digital twin driven by tables measured elsewhere: they show what "
            "routing changes under its physics, and are not a measurement of this machine."
        )
    if not view.run.is_complete:
        result.append(
            f"{place}The run has not come to its end: this report shows its finished batches, {units.min()} to "
            f"{units.max()} per strategy and workload; changes are taken over the batches that both sides have."
        )
    if not view.is_even:
        result.append(
            f"{place}Strategies have unequal numbers of batches: energies, perplexities and latencies stand on those "
            "that all strategies of a workload share."
        )
    throttled = int(batches["throttled"].fillna(0).astype(bool).sum())
    if throttled:
        result.append(f"{place}{throttled} of {len(batches)} batches ran while the GPU was throttled.")
    apart = with_units(batches, view.run.config).groupby(["workload", "strategy"])["unit"].nunique()
    result.append(f"{place}Every strategy and workload stands on {_span(apart.min(), apart.max())}.")
    return result


def _span(low: int, high: int) -> str:
    return f"{low} batch{'es' if low != 1 else ''}" if low == high else f"{low} to {high} batches"
