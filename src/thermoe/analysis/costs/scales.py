"""Logarithmic axes whose ticks can be read, whatever their range."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from thermoe.analysis.costs.names import short
from thermoe.types import FloatArray

_STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
_MOST_TICKS = 6
_LEAST_RATIO = 2.0
_LINEAR_PCT, _SYMLOG_PCT = 40.0, 10.0


def log_scale(ax: Axes, *, x: bool = False, y: bool = False, counts: bool = False) -> None:
    """Make one or both axes logarithmic and label round values; to be called when everything is drawn.

    An axis whose values lie within a factor of two stays linear: a logarithmic one would have no round values.

    Args:
        ax: The axes.
        x, y: Which of them.
        counts: Whether x counts things, so that its ticks are powers of two.
    """
    if x and (counts or _is_wide(ax.dataLim.intervalx)):
        ax.set_xscale("log", base=2 if counts else 10)
        _ticks(ax.xaxis, ax.get_xlim(), powers_of_two=counts)
    if y and _is_wide(ax.dataLim.intervaly):
        ax.set_yscale("log")
        _ticks(ax.yaxis, ax.get_ylim(), powers_of_two=False)


def percent_scale(ax: Axes, values: FloatArray, *, on_x: bool = False) -> None:
    """Residuals [%]: linear while they are small, else linear within 10 % and logarithmic beyond, round ticks."""
    reach, axis = float(np.abs(values).max()) if len(values) else 0.0, ax.xaxis if on_x else ax.yaxis
    axis.set_minor_locator(NullLocator())
    if reach <= _LINEAR_PCT:
        return
    (ax.set_xscale if on_x else ax.set_yscale)("symlog", linthresh=_SYMLOG_PCT, linscale=1.5)
    if on_x:
        ax.margins(x=0.06)
    else:
        ax.margins(y=0.06)
    ax.autoscale_view()
    ticks = (
        (-90.0, -30.0, -10.0, 0.0, 10.0, 30.0, 100.0) if reach <= 300.0 else (-90.0, -10.0, 0.0, 10.0, 100.0, 1e3, 1e4)
    )
    low, high = float(values.min()), float(values.max())
    shown = [t for t in ticks if abs(t) <= _SYMLOG_PCT or 1.2 * low <= t <= 1.2 * high]
    axis.set_ticks(shown, [f"{t:+g}" if t else "0" for t in shown])
    axis.set_minor_locator(NullLocator())


def _is_wide(ends: "FloatArray | tuple[float, float]") -> bool:
    low, high = float(min(ends)), float(max(ends))
    return low > 0 and high / low >= _LEAST_RATIO


def _ticks(axis: Axis, limits: tuple[float, float], *, powers_of_two: bool) -> None:
    low, high = max(min(limits), 1e-30), max(limits)
    ticks = _doublings(low, high) if powers_of_two else _round_values(low, high)
    if ticks is None:
        axis.set_major_locator(LogLocator(numticks=_MOST_TICKS + 1))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(short))
    axis.set_minor_formatter(NullFormatter())


def _doublings(low: float, high: float) -> Sequence[float]:
    first, last = int(np.ceil(np.log2(low) - 1e-9)), int(np.floor(np.log2(high) + 1e-9))
    step = max(1, -(-(last - first + 1) // (_MOST_TICKS + 1)))
    return [2.0**power for power in range(first, last + 1, step)]


def _round_values(low: float, high: float) -> Sequence[float] | None:
    """A few round values between the limits, None where powers of ten do."""
    decades = np.log10(high / low)
    if decades > 3.2:
        return None
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    for steps in (_STEPS, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        found = [s * 10.0**power for power in range(first, last + 1) for s in steps if low <= s * 10.0**power <= high]
        if len(found) <= _MOST_TICKS:
            break
    return found
