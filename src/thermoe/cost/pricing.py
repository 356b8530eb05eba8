"""Law, correction and conditions put together: what cases cost. B cases."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from thermoe.cost.cases import Cases
from thermoe.cost.correction import Correction
from thermoe.cost.device_state import LEAST_ABOVE_IDLE, Conditions, conditions
from thermoe.cost.encoding import Inputs
from thermoe.cost.features import EXPERT_OPS, features_of
from thermoe.cost.fitted import FittedLaw, dynamic_energy_j
from thermoe.cost.kernel_work import KnownParts, figures_of, parts_of, work_moved
from thermoe.cost.kernels import kernels_of
from thermoe.cost.law import physical_law
from thermoe.cost.observations import LawKey, Observations
from thermoe.cost.power_law import PowerLaw
from thermoe.cost.prediction import CostArrays
from thermoe.cost.roofline import H200, DeviceLimits
from thermoe.cost.work import OPERATIONS, cases_of, work_of_cases
from thermoe.types import BoolArray, FloatArray, IntArray, MoEShape

_SMALL = 0.05  # powers of e
_ROUNDS = 12  # each brings a latency nearer to the one that the power limit stretches to a measured one


@dataclass(frozen=True, slots=True)
class Pricing:
    """Costs of cases; predicted.

    Attributes:
        latency_s, energy_j: (B,) [s], [J].
        full_clock_s: Latency of a call so short that no power limit holds it back (B,) [s].
        log_error: Logarithmic half width of the 90 % intervals of both (B, 2); NaN where unknown.
        is_covered: Whether a case lies in the measured range (B,).
    """

    latency_s: FloatArray
    energy_j: FloatArray
    full_clock_s: FloatArray
    log_error: FloatArray
    is_covered: BoolArray

    @classmethod
    def blank(cls, count: int) -> Self:
        """Room for so many cases."""
        latency_s, energy_j, full_clock_s = np.empty((3, count))
        return cls(latency_s, energy_j, full_clock_s, np.empty((count, 2)), np.empty(count, dtype=np.bool_))

    def put(self, rows: IntArray, part: "Pricing") -> None:
        """Set some rows."""
        for name in self.__slots__:
            getattr(self, name)[rows] = getattr(part, name)


def price(
    cases: Cases,
    fitted: FittedLaw | None,
    correction: Correction | None,
    limits: DeviceLimits,
    at: Conditions,
    bits: float | None = None,
) -> Pricing:
    """Costs of cases of one operation, implementation and format.

    The law says what work takes at full clock; conditions stretch it until its power fits the limit. A correction
    was learned at the conditions of the measurements, so it is put on what the law says there, and a
    lower limit stretches the result further. A law of power is asked again for the corrected latency.

    Args:
        cases: What is asked.
        fitted: Law and errors; the roofline where None.
        correction: Learned factors, if any.
        limits: The device.
        at: Conditions to predict for.
        bits: Precision of the weights if it is not that of the format, such as a mean [bit].
    """
    counted = np.full(len(cases), bits) if bits is not None else cases.bits
    work = OPERATIONS[cases.op](cases, cases.loads.rows, cases.loads.distinct, counted).table()
    if fitted is None:
        free_s, dynamic_j = physical_law(limits, float(counted[0])).both(work)
    else:
        known_parts = parts_of(cases)
        free_s, dynamic_j = fitted.both(cases, work, known_parts)
    if fitted is None or correction is None:
        costs = at.apply(free_s, dynamic_j)
        errors = [np.nan if e is None else e for e in _errors(fitted)]
        covered = fitted.covered(work) if fitted else np.zeros(len(cases), dtype=np.bool_)
        return Pricing(costs.latency_s, costs.energy_j, free_s, np.tile(errors, (len(cases), 1)), covered)
    measured = conditions(limits, 0.0, None)
    by_law = measured.apply(free_s, dynamic_j)
    latency_error, energy_error = (np.nan if e is None else e for e in _errors(fitted))
    inputs = _inputs(cases, work, free_s, by_law, limits, known_parts)
    answer = correction.answer(inputs, (latency_error, energy_error))
    full_clock_s, log_error = free_s * np.exp(answer.factors[:, 0]), answer.log_error
    if fitted.power is None:
        costs = corrected(by_law, answer.factors, measured)
    else:
        watts = _Asked(fitted.power, work_moved(cases, work), measured)
        costs = watts.costs(full_clock_s, answer.factors[:, 1])
        if not correction.knows_power:
            log_error[:, 1] = np.hypot(*watts.misses(full_clock_s, log_error[:, 0], fitted.power.log_error).T)
    above_idle_j = np.maximum(costs.energy_j - measured.static_power_w * costs.latency_s, 0.0)
    costs = at.apply(costs.latency_s, above_idle_j)
    return Pricing(costs.latency_s, costs.energy_j, full_clock_s, log_error, answer.is_covered)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A law of power, asked for latencies at full clock, with what is moved (B, 6)."""

    power: PowerLaw
    moved: FloatArray
    at: Conditions

    def at_full_clock_j(self, full_clock_s: FloatArray) -> FloatArray:
        """Energy without a power limit (B,)."""
        return self.power.dynamic_energy_j(self.moved, full_clock_s) + self.at.static_power_w * full_clock_s

    def costs(self, full_clock_s: FloatArray, factors: FloatArray | float = 0.0) -> CostArrays:
        """Under the limit, with power at full clock times learned factors (logarithms)."""
        energy_j = self.at_full_clock_j(full_clock_s) * np.exp(factors)
        idle_j = self.at.static_power_w * full_clock_s
        return self.at.apply(full_clock_s, np.maximum(energy_j - idle_j, LEAST_ABOVE_IDLE * energy_j))

    def misses(self, full_clock_s: FloatArray, latency: FloatArray, power: FloatArray | float) -> FloatArray:
        """What misses of latency and of power, in logarithms, are in energy (B, 2).

        What is done costs the same in a longer time; power over the limit stretches work instead.
        """
        by_latency = [self.costs(full_clock_s * np.exp(sign * latency)).energy_j for sign in (-1.0, 1.0)]
        by_power = [self.costs(full_clock_s, sign * power).energy_j for sign in (-1.0, 1.0)]
        return np.stack([np.abs(np.log(high / low)) / 2.0 for low, high in (by_latency, by_power)], axis=1)


def corrected(costs: CostArrays, factors: FloatArray, measured: Conditions) -> CostArrays:
    """Costs times learned factors (B, 2); power stays between idle and the limit."""
    latency_s = costs.latency_s * np.exp(factors[:, 0])
    power_w = costs.energy_j / costs.latency_s * np.exp(factors[:, 1])
    power_w = np.clip(power_w, measured.static_power_w / (1.0 - LEAST_ABOVE_IDLE), measured.power_limit_w)
    return CostArrays(latency_s, power_w * latency_s)


def rows_by_key(cases: Cases) -> dict[LawKey, IntArray]:
    """Rows of each implementation and format."""
    names = np.char.add(np.char.add(np.array(cases.impl, dtype=np.str_), "/"), np.array(cases.dtype, dtype=np.str_))
    found: dict[LawKey, IntArray] = {}
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        found[cases.op, cases.impl[rows[0]], cases.dtype[rows[0]]] = rows
    return found


def correction_inputs(cases: Cases, laws: Mapping[LawKey, FittedLaw], limits: DeviceLimits) -> Inputs:
    """What a correction sees of cases of one operation."""
    work, free_s, dynamic_j = work_of_cases(cases).table(), np.empty(len(cases)), np.empty(len(cases))
    for key, rows in rows_by_key(cases).items():
        free_s[rows], dynamic_j[rows] = laws[key].both(cases.take(rows), work[rows])
    by_law = conditions(limits, 0.0, None).apply(free_s, dynamic_j)
    return _inputs(cases, work, free_s, by_law, limits)


def correction_targets(observed: Observations, laws: Mapping[LawKey, FittedLaw], limits: DeviceLimits) -> FloatArray:
    """Logarithms of measured over law, latency and power (B, 2); NaN where not measured.

    Where energy was measured, both are those of its window, under the power limit; a latency alone was timed in
    short rounds and stands against the law at full clock. Where no energy was measured at all, nothing says what
    the power limit does, and latencies count as they are. A law of power is asked for the latency that was measured,
    and the limit, which both know, left aside.
    """
    measured, targets = conditions(limits, 0.0, None), np.empty((len(observed), 2))
    for key, rows in observed.by_key().items():
        part, power = observed.take(rows), laws[key].power
        work = work_of_cases(part.cases).table()
        free_s, dynamic_j = laws[key].both(part.cases, work)
        has_energy = np.isfinite(part.energy_j)
        if power is not None:
            watts = _Asked(power, work_moved(part.cases, work), measured)
            full_clock_s = part.latency_s if has_energy.any() else _at_full_clock_s(part.window_s, watts)
            energy_j = dynamic_energy_j(part, limits) + measured.static_power_w * full_clock_s
            targets[rows, 0] = np.log(full_clock_s / free_s)
            targets[rows, 1] = np.log(energy_j / watts.at_full_clock_j(full_clock_s))
        else:
            costs = measured.apply(free_s, dynamic_j)
            as_timed = has_energy | ~has_energy.any()
            targets[rows, 0] = np.log(np.where(as_timed, part.window_s / costs.latency_s, part.latency_s / free_s))
            power_w = part.reference_energy_j / part.window_s
            targets[rows, 1] = np.log(power_w / (costs.energy_j / costs.latency_s))
    return targets


def energy_shares(observed: Observations, laws: Mapping[LawKey, FittedLaw], limits: DeviceLimits) -> FloatArray:
    """How much of a miss of latency and of one of power is one of energy (B, 2), in logarithms.

    All of both unless a law of power is asked again.
    """
    measured, shares = conditions(limits, 0.0, None), np.ones((len(observed), 2))
    for key, rows in observed.by_key().items():
        if (power := laws[key].power) is not None:
            part = observed.take(rows)
            watts = _Asked(power, work_moved(part.cases, work_of_cases(part.cases).table()), measured)
            small = np.full(len(part), _SMALL)
            shares[rows] = watts.misses(part.latency_s, small, small) / _SMALL
    return shares


def _at_full_clock_s(latency_s: FloatArray, watts: _Asked) -> FloatArray:
    """Latencies that a law of power stretches to the measured ones (B,)."""
    full_clock_s = latency_s
    for _ in range(_ROUNDS):
        full_clock_s = full_clock_s * latency_s / watts.costs(full_clock_s).latency_s
    return full_clock_s


def correction_sizes(op: str) -> tuple[int, int, int]:
    """Features, extents and figures of this project's kernels that a correction of this operation has."""
    cases = cases_of(op, MoEShape(num_layers=1, hidden_size=64, inter_size=64, num_experts=2, top_k=1), 1.0, 1.0)
    inputs = _inputs(cases, work_of_cases(cases).table(), np.ones(1), CostArrays(np.ones(1), np.ones(1)), H200)
    return inputs.features.shape[1], inputs.extent.shape[1], inputs.own.shape[1]


def _inputs(
    cases: Cases,
    work: FloatArray,
    free_s: FloatArray,
    by_law: CostArrays,
    limits: DeviceLimits,
    known_parts: KnownParts | None = None,
) -> Inputs:
    extent = np.concatenate([work[:, 1:5], cases.hidden_size[:, None], cases.inter_size[:, None]], axis=1)
    parts = zip(cases.impl, cases.dtype, kernels_of(cases).tolist(), strict=True)
    names = [" ".join((f"{impl}/{dtype}", kernel)).strip() for impl, dtype, kernel in parts]
    kin = [""] * len(names)
    if cases.op in EXPERT_OPS:
        on_gpu = np.stack([cases.num_experts, cases.inter_size], axis=1).tolist()
        kin = [f"{name} {experts:g} x {width:g}" for name, (experts, width) in zip(names, on_gpu, strict=True)]
    return Inputs(
        features=features_of(cases, work, free_s, limits),
        extent=np.log(np.maximum(extent, 1.0)),
        tokens=cases.tokens,
        names=np.array(names),
        models=cases.models(),
        law=np.log(np.stack([by_law.latency_s, by_law.energy_j / by_law.latency_s], axis=1)),
        kin=np.array(kin),
        own=figures_of(cases, known_parts),
    )


def _errors(fitted: FittedLaw | None) -> tuple[float | None, float | None]:
    return (None, None) if fitted is None else (fitted.latency_log_error, fitted.energy_log_error)
