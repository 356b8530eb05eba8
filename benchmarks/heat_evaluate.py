"""Judges forecasts of core temperature and power on recorded traces, against persistence."""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.heat_trace import PlannedStep, Trace
from thermoe.cost.thermal_forecast import Forecast, PlannedLoad
from thermoe.cost.thermal_predictor import ThermalPredictor
from thermoe.errors import ConfigError
from thermoe.types import Kind, SysState

HORIZON_S = 2.0
_ON_TIME_S = 0.15  # a reading this far from the horizon still stands for it
TARGET_MAE_C, TARGET_COVERAGE_PCT = 1.0, (85.0, 95.0)
_JUDGED = "planned, frozen"
_SETTLED_S = 1.2  # power of a load is compared with its plan from then on: means of the last second are its own


@dataclass(frozen=True, slots=True)
class Judged:
    """One forecast and what came.

    Attributes:
        value, low, high: Forecast and its bounds.
        came, before: Reading at the horizon, and at the time of the forecast.
        has_step: Whether the load changed in between.
        load: What ran at the horizon.
    """

    value: float
    low: float
    high: float
    came: float
    before: float
    has_step: bool
    load: str


def evaluate(traces: Sequence[Trace], fit_share: float) -> dict[str, Any]:
    """Forecast `HORIZON_S` ahead in the part of each trace that was not fitted.

    `planned` knows which loads come when, and the power planned for each before it ran; `expected` knows nothing of
    the loads to come. `frozen` keeps the network as fitted, `online` goes on learning, as in service.
    """
    if not 0.1 <= fit_share <= 0.9:
        raise ConfigError(f"fit share {fit_share}: needs a number from 0.1 to 0.9")
    arms: dict[str, dict[str, list[Judged]]] = {}
    details = [_judge_trace(trace, fit_share, arms) for trace in traces]
    arm_figures = {name: {part: _figures(cases) for part, cases in parts.items()} for name, parts in arms.items()}
    return {
        "schema": 1,
        "kind": str(traces[0].kind),
        "forecast": "predicted",
        "horizon_s": HORIZON_S,
        "fit_share": fit_share,
        "target": {"mae_c": TARGET_MAE_C, "coverage_pct": TARGET_COVERAGE_PCT, "of": _JUDGED},
        "target_met": not _missed(arm_figures[_JUDGED]["temp_c"]),
        "arms": arm_figures,
        "traces": details,
    }


def _judge_trace(trace: Trace, fit_share: float, arms: dict[str, dict[str, list[Judged]]]) -> dict[str, Any]:
    split_s = _split_s(trace, fit_share)
    predictor = ThermalPredictor().fit(s for s in trace.states if s.time_s < split_s)
    plan_errors = _plan_errors(trace, split_s)
    saved = predictor.as_dict()
    for mode in ("frozen", "online"):
        served = ThermalPredictor.from_dict(saved)
        served.fit([s for s in trace.states if s.time_s < split_s][-1:])
        for forecast_of in _replay(trace, split_s, served, plan_errors, learn=mode == "online"):
            for name, (part, judged) in forecast_of:
                arms.setdefault(f"{name}, {mode}", {}).setdefault(part, []).append(judged)
    return {
        "env": trace.env,
        "states": len(trace.states),
        "loads_held_out": sum(load.start_s >= split_s for load in trace.loads),
        "split_s": round(split_s - trace.states[0].time_s, 2),
        "plan_error_pct": {
            "with_pauses": round(100.0 * plan_errors[True], 2),
            "without": round(100.0 * plan_errors[False], 2),
        },
        "ambient_c": round(predictor.ambient_c_, 3),
        "resistance_c_per_w": {
            str(tau): round(float(r), 5)
            for tau, r in zip(predictor.time_constants_s, predictor.resistance_c_per_w_, strict=True)
        },
        "memory_relief_c": {
            str(tau): round(float(m), 3)
            for tau, m in zip(predictor.time_constants_s, predictor.memory_relief_c_, strict=True)
        },
        "residual_sd_c": round(predictor.residual_sd_c_, 3),
    }


def _split_s(trace: Trace, fit_share: float) -> float:
    """Start of the first planned load after `fit_share` of the trace, so that no load is on both sides."""
    first_s, last_s = trace.states[0].time_s, trace.states[-1].time_s
    wanted_s = first_s + fit_share * (last_s - first_s)
    starts_s = [load.start_s for load in trace.loads if load.planned_w is not None and load.start_s >= wanted_s]
    if not starts_s or starts_s[0] > last_s - 3.0 * HORIZON_S:
        raise ConfigError(f"no load to hold out in a trace of {last_s - first_s:.0f} s: record for longer")
    return starts_s[0]


def _plan_errors(trace: Trace, split_s: float) -> dict[bool, float]:
    """Root mean square of (mean power of a load / power planned - 1) over the fitted loads with pauses, and without.

    Pauses depend on the host, so that loads which have them are planned less exactly.
    """
    drawn_w: dict[PlannedStep, list[float]] = {}
    for state in trace.states:
        load = _load_at(trace, state.time_s)
        power_w = state.power_w if state.power_avg_w is None else state.power_avg_w
        if state.time_s < split_s and state.time_s - load.start_s >= _SETTLED_S and power_w is not None:
            drawn_w.setdefault(load, []).append(power_w)
    off: dict[bool, list[float]] = {False: [], True: []}
    for load, powers_w in drawn_w.items():
        if load.planned_w:
            off[_pauses(load)].append(float(np.mean(powers_w)) / load.planned_w - 1.0)
    every = off[False] + off[True]
    return {paused: float(np.sqrt(np.mean(np.square(some or every or [0.0])))) for paused, some in off.items()}


def _pauses(load: PlannedStep) -> bool:
    return 0.0 < load.duty < 1.0


def _load_at(trace: Trace, time_s: float) -> PlannedStep:
    return trace.loads[max(bisect.bisect_right(trace.loads, time_s, key=lambda load: load.start_s) - 1, 0)]


def _plan(trace: Trace, time_s: float, plan_errors: dict[bool, float]) -> list[PlannedLoad]:
    """Loads from now to the horizon, as they were planned."""
    edges_s = [time_s] + [x.start_s for x in trace.loads if time_s < x.start_s < time_s + HORIZON_S]
    ends_s = [*edges_s[1:], math.inf]
    plan = []
    for start_s, end_s in zip(edges_s, ends_s, strict=True):
        load = _load_at(trace, start_s)
        planned_w = load.planned_w or 0.0
        plan.append(
            PlannedLoad(
                duration_s=end_s - start_s,
                power_w=planned_w,
                power_sd_w=plan_errors[_pauses(load)] * planned_w,
                memory_util=load.planned_memory_util,
            )
        )
    return plan


def _replay(
    trace: Trace, split_s: float, predictor: ThermalPredictor, plan_errors: dict[bool, float], *, learn: bool
) -> list[list[tuple[str, tuple[str, Judged]]]]:
    """Run through the held-out states; at each, the forecasts of both arms beside what came."""
    times_s = [state.time_s for state in trace.states]
    found = []
    for index in range(bisect.bisect_left(times_s, split_s), len(times_s)):
        now = trace.states[index]
        predictor.update(now, learn=learn)
        then = _reading_at(trace.states, times_s, now.time_s + HORIZON_S)
        if then is None or now.temp_c is None or now.power_w is None:
            continue
        load = _load_at(trace, then.time_s)
        seen = (now, then, _load_at(trace, now.time_s) is not load, load.name)
        span_s = then.time_s - now.time_s
        planned = predictor.predict(span_s, _plan(trace, now.time_s, plan_errors), num_points=2)
        expected = predictor.predict(span_s, num_points=2)
        found.append(
            [
                ("planned", ("temp_c", _judge_temp(planned, *seen))),
                ("expected", ("temp_c", _judge_temp(expected, *seen))),
                ("expected", ("power_w", _judge_power(expected, *seen))),
            ]
        )
    return found


def _reading_at(states: Sequence[SysState], times_s: Sequence[float], time_s: float) -> SysState | None:
    """The state nearest to a time, if it is near and has both readings."""
    after = bisect.bisect_left(times_s, time_s)
    near = min(states[max(after - 1, 0) : after + 1], key=lambda s: abs(s.time_s - time_s))
    whole = near.temp_c is not None and near.power_w is not None
    return near if whole and abs(near.time_s - time_s) <= _ON_TIME_S else None


def _judge_temp(forecast: Forecast, now: SysState, then: SysState, has_step: bool, load: str) -> Judged:
    assert now.temp_c is not None
    assert then.temp_c is not None
    ends = (float(x[-1]) for x in (forecast.temp_c, forecast.low_c, forecast.high_c))
    return Judged(*ends, then.temp_c, now.temp_c, has_step, load)


def _judge_power(forecast: Forecast, now: SysState, then: SysState, has_step: bool, load: str) -> Judged:
    assert now.power_w is not None
    assert then.power_w is not None
    ends = (float(x[-1]) for x in (forecast.power_w, forecast.power_low_w, forecast.power_high_w))
    return Judged(*ends, then.power_w, now.power_w, has_step, load)


def _figures(cases: Sequence[Judged]) -> dict[str, Any]:
    """Errors, intervals and persistence over all cases, with and without a change of load, and bias by load."""
    parts: dict[str, Callable[[Judged], bool]] = {"with_step": lambda c: c.has_step, "steady": lambda c: not c.has_step}
    subsets = {name: [case for case in cases if keep(case)] for name, keep in parts.items()}
    bias = {load: float(np.mean([c.came - c.value for c in cases if c.load == load])) for load in _loads(cases)}
    return (
        _summary(cases)
        | {name: _summary(subset) for name, subset in subsets.items() if subset}
        | {"bias_by_load": {load: round(value, 3) for load, value in bias.items()}}
    )


def _loads(cases: Sequence[Judged]) -> list[str]:
    return sorted({case.load for case in cases})


def _summary(cases: Sequence[Judged]) -> dict[str, Any]:
    error = np.array([c.came - c.value for c in cases])
    persisted = np.array([c.came - c.before for c in cases])
    held = np.array([c.low <= c.came <= c.high for c in cases])
    return {
        "cases": len(cases),
        "mae": round(float(np.abs(error).mean()), 4),
        "mae_persistence": round(float(np.abs(persisted).mean()), 4),
        "bias": round(float(error.mean()), 4),
        "p90": round(float(np.quantile(np.abs(error), 0.9)), 4),
        "coverage_pct": round(100.0 * float(held.mean()), 2),
        "mean_width": round(float(np.mean([c.high - c.low for c in cases])), 4),
    }


def summary_lines(results: dict[str, Any]) -> list[str]:
    """One line for each arm and figure."""
    lines = [f"{results['horizon_s']:g} s ahead, {results['kind']} traces, forecasts predicted"]
    for name, parts in results["arms"].items():
        for part, x in parts.items():
            lines.append(
                f"{name:17} {part:8} MAE {x['mae']:.2f} (persistence {x['mae_persistence']:.2f}), "
                f"90 % intervals hold {x['coverage_pct']:.1f} %, mean width {x['mean_width']:.2f}, n {x['cases']}"
            )
    lines.append(_verdict(results))
    return lines


def _missed(figures: dict[str, Any]) -> list[str]:
    """What the target asks for and these figures do not give."""
    low, high = TARGET_COVERAGE_PCT
    missed = []
    if not figures["mae"] <= TARGET_MAE_C:
        missed.append(f"the mean error is {figures['mae']:.2f} C, asked were {TARGET_MAE_C:g} at most")
    if not figures["mae"] < figures["mae_persistence"]:
        missed.append(f"the mean error is {figures['mae']:.2f} C, no change at all {figures['mae_persistence']:.2f}")
    if not low <= figures["coverage_pct"] <= high:
        missed.append(f"intervals hold {figures['coverage_pct']:.1f} %, asked were {low:g} to {high:g}")
    return missed


def _verdict(results: dict[str, Any]) -> str:
    missed = _missed(results["arms"][_JUDGED]["temp_c"])
    if not missed:
        return f"target met by {_JUDGED}"
    of_a_twin = "" if results["kind"] == Kind.MEASURED else "; the target is for traces of a GPU, these are simulated"
    return f"target MISSED by {_JUDGED}: {'; '.join(missed)}{of_a_twin}"
