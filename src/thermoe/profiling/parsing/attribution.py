"""Splits the energy of one device among the kernels that ran on it.

While n kernels run at once each takes 1/n of the board's power, static power included; time in which none ran
is idle. Durations are therefore never added up: the union of busy time counts once. What kernels get, what is
idle and what could not be given to a kernel add up to the integral of power over the window.
"""

from dataclasses import dataclass

import numpy as np

from thermoe.types import BoolArray, FloatArray, IntArray

#: Longest stretch without a reading of power that is bridged [ns].
MAX_GAP_NS = 1_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution:
    """Energy of the kernels of one device; NaN where the power log does not cover a kernel.

    Attributes:
        energy_j: (K,) share of the energy [J].
        power_mean_w, power_peak_w: (K,) mean and highest power of the board while the kernel ran, whoever
            else ran beside it [W].
        window_j: Integral of power from the first start to the last end, where the log covers it [J].
        idle_j: Part of it in which no kernel ran [J].
        lost_j: Part of it that fell to kernels which the log covers only partly [J].
        busy_ns: Length of the union of all kernels [ns].
    """

    energy_j: FloatArray
    power_mean_w: FloatArray
    power_peak_w: FloatArray
    window_j: float
    idle_j: float
    lost_j: float
    busy_ns: int


class PowerCurve:
    """Power over time, linear between readings, unknown outside them and in holes that are too long.

    Args:
        time_ns: (N,) increasing, N >= 2 [ns].
        power_w: (N,) [W].
        max_gap_ns: Longest hole that is bridged [ns].
    """

    def __init__(self, time_ns: IntArray, power_w: FloatArray, max_gap_ns: int = MAX_GAP_NS) -> None:
        self._time_ns, self._power_w = time_ns, power_w
        gaps_ns = np.diff(time_ns)
        known = gaps_ns <= max_gap_ns
        self._step_s = np.where(known, gaps_ns * 1e-9, 0.0)
        self._rise_w = np.where(known, np.diff(power_w), 0.0)
        steps_j = 0.5 * (power_w[1:] + power_w[:-1]) * self._step_s
        self._energy_j = np.concatenate([[0.0], np.cumsum(steps_j)])
        self._known = known
        self._unknown_ns = np.concatenate([[0], np.cumsum(np.where(known, 0, gaps_ns))])

    def energy_j(self, at_ns: IntArray) -> FloatArray:
        """Energy since the first reading [J]; constant wherever power is unknown."""
        step, inside_s = self._locate(at_ns)
        slope = np.divide(
            self._rise_w[step], self._step_s[step], out=np.zeros(step.shape), where=self._step_s[step] > 0
        )
        grown_j = self._power_w[step] * inside_s + 0.5 * slope * inside_s**2
        result: FloatArray = np.where(self._known[step], self._energy_j[step] + grown_j, self._energy_j[step])
        return np.where(at_ns >= self._time_ns[-1], self._energy_j[-1], result)

    def unknown_ns(self, at_ns: IntArray) -> IntArray:
        """Time without a known power up to each moment, less a constant [ns]."""
        before = np.minimum(at_ns - self._time_ns[0], 0)
        after = np.maximum(at_ns - self._time_ns[-1], 0)
        step, _ = self._locate(at_ns)
        inside = np.clip(at_ns, self._time_ns[0], self._time_ns[-1]) - self._time_ns[step]
        result: IntArray = before + after + self._unknown_ns[step] + np.where(self._known[step], 0, inside)
        return result

    def power_at(self, at_ns: IntArray) -> FloatArray:
        """Power at each moment [W]; NaN where it is unknown."""
        step, inside_s = self._locate(at_ns)
        slope = np.divide(
            self._rise_w[step], self._step_s[step], out=np.zeros(step.shape), where=self._step_s[step] > 0
        )
        is_known = (at_ns >= self._time_ns[0]) & (at_ns <= self._time_ns[-1])
        is_known &= self._known[step] | (at_ns == self._time_ns[step]) | (at_ns == self._time_ns[step + 1])
        power_w = np.where(at_ns == self._time_ns[step + 1], self._power_w[step + 1], self._power_w[step])
        power_w = np.where(self._known[step], self._power_w[step] + slope * inside_s, power_w)
        return np.where(is_known, power_w, np.nan)

    def peak_w(self, start_ns: IntArray, end_ns: IntArray) -> FloatArray:
        """Highest power of each interval [W]: at its ends and at all readings inside."""
        first = np.searchsorted(self._time_ns, start_ns, side="left")
        last = np.searchsorted(self._time_ns, end_ns, side="right")
        inside = _range_maximum(self._power_w, first, last)
        peak_w: FloatArray = np.fmax(np.fmax(self.power_at(start_ns), self.power_at(end_ns)), inside)
        return peak_w

    def _locate(self, at_ns: IntArray) -> tuple[IntArray, FloatArray]:
        """Step between two readings that each moment lies in, and how far inside [s]; clipped to the log."""
        clipped = np.clip(at_ns, self._time_ns[0], self._time_ns[-1])
        after = np.searchsorted(self._time_ns, clipped, side="right")
        step: IntArray = np.clip(after - 1, 0, self._time_ns.size - 2).astype(np.int64)
        inside_s: FloatArray = (clipped - self._time_ns[step]).astype(np.float64) * 1e-9
        return step, inside_s


def attribute(start_ns: IntArray, end_ns: IntArray, power: PowerCurve) -> Attribution:
    """Split a device's energy among its kernels.

    Args:
        start_ns, end_ns: (K,) kernels of one device on the clock of `power`, end >= start [ns].
        power: The device's power.
    """
    if start_ns.size == 0:
        nothing = np.empty(0)
        return Attribution(
            energy_j=nothing,
            power_mean_w=nothing,
            power_peak_w=nothing,
            window_j=0.0,
            idle_j=0.0,
            lost_j=0.0,
            busy_ns=0,
        )
    edges = np.unique(np.concatenate([start_ns, end_ns]))
    first, last = np.searchsorted(edges, start_ns), np.searchsorted(edges, end_ns)
    running = np.cumsum(np.bincount(first, minlength=edges.size) - np.bincount(last, minlength=edges.size))[:-1]
    segments_j = np.diff(power.energy_j(edges))
    shares_j = np.concatenate([[0.0], np.cumsum(segments_j / np.maximum(running, 1) * (running > 0))])
    energy_j = shares_j[last] - shares_j[first]
    covered = _is_covered(start_ns, end_ns, power)
    return Attribution(
        energy_j=np.where(covered, energy_j, np.nan),
        power_mean_w=np.where(covered, _mean_w(start_ns, end_ns, power), np.nan),
        power_peak_w=np.where(covered, power.peak_w(start_ns, end_ns), np.nan),
        window_j=float(segments_j.sum()),
        idle_j=float(segments_j[running == 0].sum()),
        lost_j=float(energy_j[~covered].sum()),
        busy_ns=int(np.diff(edges)[running > 0].sum()),
    )


def _is_covered(start_ns: IntArray, end_ns: IntArray, power: PowerCurve) -> BoolArray:
    covered = power.unknown_ns(end_ns) == power.unknown_ns(start_ns)
    result: BoolArray = covered & ~np.isnan(power.power_at(start_ns))
    return result


def _mean_w(start_ns: IntArray, end_ns: IntArray, power: PowerCurve) -> FloatArray:
    """Mean power of the board [W]; a kernel without length has the power of its moment."""
    seconds = (end_ns - start_ns) * 1e-9
    grown_j = power.energy_j(end_ns) - power.energy_j(start_ns)
    mean_w: FloatArray = np.divide(grown_j, seconds, out=power.power_at(start_ns), where=seconds > 0)
    return mean_w


def _range_maximum(values: FloatArray, first: IntArray, last: IntArray) -> FloatArray:
    """Maximum of `values[first:last]` for each pair, NaN where it is empty; in n log n, level by level."""
    result = np.full(first.shape, np.nan)
    length = np.maximum(last - first, 0)
    level = np.where(length > 0, np.frexp(np.maximum(length, 1))[1] - 1, -1)  # floor of log2
    table = values
    for exponent in range(int(level.max(initial=-1)) + 1):
        if exponent:
            half = 1 << (exponent - 1)
            table = np.fmax(table[:-half], table[half:])
        mine = level == exponent
        result[mine] = np.fmax(table[first[mine]], table[last[mine] - (1 << exponent)])
    return result
