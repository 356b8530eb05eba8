"""Cost against core temperature."""

from typing import Any

import numpy as np

from thermoe.analysis.costs.figures_axes import Drawn, stamp_rows
from thermoe.analysis.costs.scales import percent_scale
from thermoe.analysis.costs.series import LOOKS
from thermoe.analysis.costs.view import Source
from thermoe.analysis.style import panels, shared_legend
from thermoe.types import FloatArray


def against_temperature(source: Source) -> Drawn:
    """Power against core temperature and, where predictions stand beside, how far energy lies from them."""
    rows = [r for r in source.rows if r.temp_c is not None and r.power_w is not None]
    judged, of_what = source.judged
    off = [
        (op, p.temp_c, 100.0 * (p.measured_j / p.energy_j - 1.0))
        for op, p in judged.items()
        if np.isfinite(p.temp_c).any()
    ]
    if len({r.temp_c for r in rows}) < 2:
        return None
    has_misses = any((np.isfinite(t) & np.isfinite(miss)).any() for _, t, miss in off)
    figure, axes = panels(2 if has_misses else 1, height_in=2.4)
    ops = sorted({r.op for r in rows}, key=lambda op: -sum(r.op == op for r in rows))
    for number, op in enumerate(ops[: len(LOOKS)]):
        look, mine = LOOKS[number], [r for r in rows if r.op == op]
        dots: dict[str, Any] = {
            "marker": look.marker,
            "color": look.color,
            "linestyle": "none",
            "markersize": 3.5,
            "alpha": 0.8,
        }
        axes[0].plot([r.temp_c or 0.0 for r in mine], [r.power_w or 0.0 for r in mine], label=op, **dots)
        for name, temp_c, miss in off if has_misses else ():
            if name == op:
                axes[1].plot(temp_c, miss, label=op, **dots)
    axes[0].set_ylabel("board power [W]")
    for ax in axes:
        ax.set_xlabel("core temperature [°C]")
    caption = "Board power against core temperature: power makes heat, so that this is no effect of temperature alone."
    if has_misses:
        percent_scale(axes[1], np.concatenate([miss[np.isfinite(miss)] for _, _, miss in off]))
        axes[1].axhline(0.0, color="#8a8d91", linewidth=0.8)
        axes[1].set_ylabel("residual of energy [%]")
        t, miss = (np.concatenate([part[i] for part in off]) for i in (1, 2))
        caption += (
            " Right: what is left of energy, measured over predicted − 1, once size and load are accounted for "
            f"({of_what}){_leaning(t, miss)}."
        )
    shared_legend(figure, axes)
    stamp_rows(figure, source, rows)
    return figure, caption


def _leaning(temp_c: FloatArray, miss: FloatArray) -> str:
    """The slope of what is left over temperature, with its 90 % interval, in words."""
    from scipy.stats import linregress, t

    known = np.isfinite(temp_c) & np.isfinite(miss)
    if known.sum() < 8 or np.ptp(temp_c[known]) == 0:
        return ""
    fit = linregress(temp_c[known], miss[known])
    half = float(t.ppf(0.95, int(known.sum()) - 2) * fit.stderr)
    return (
        f": {fit.slope:+.2f} [{fit.slope - half:+.2f}, {fit.slope + half:+.2f}] % a degree over {int(known.sum())} rows"
    )
