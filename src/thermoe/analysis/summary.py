"""The figures of summary.json, computed from the tables of a run and from nothing else."""

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
import pandas as pd

from thermoe.adaptation.limits import all_held, limits_of
from thermoe.analysis.energy import with_energy
from thermoe.analysis.schema import KEY, TABLES, conform, in_order
from thermoe.analysis.statistics import bootstrap
from thermoe.analysis.units import with_units
from thermoe.types import Budget, Kind

SCHEMA = 1
REFERENCE = "baseline"


def summarise(tables: Mapping[str, pd.DataFrame], config: Mapping[str, Any], env: Mapping[str, Any]) -> dict[str, Any]:
    """The content of summary.json; a number that the run could not obtain is None.

    Args:
        tables: `batches`, `steps`, `experts`, `telemetry`; absent tables count as empty.
        config: The resolved configuration.
        env: The content of env.json.

    Raises:
        DataError: A table does not follow the schema of the run folder.
    """
    known = {name: conform(name, tables.get(name, pd.DataFrame())) for name in TABLES}
    batches, steps = with_units(with_energy(known["batches"]), config), known["steps"]
    kind = _telemetry_kind(known, env)
    workloads = {}
    for workload in [str(name) for name in batches["workload"].unique()]:
        of_workload = batches[batches["workload"] == workload]
        steps_here = dict(iter(steps[steps["workload"] == workload].groupby("strategy", sort=False)))
        workloads[workload] = {
            "strategies": {
                name: _with_limits(
                    _strategy(of_workload, steps_here.get(name, steps.iloc[:0]), name), name, config, kind
                )
                for name in in_order(of_workload["strategy"])
            }
        }
    return {
        "schema": SCHEMA,
        "telemetry": kind,
        "priced_as": _setting("priced_as", env, config),
        "model": _setting("model", env, config),
        "workloads": workloads,
    }


def _strategy(batches: pd.DataFrame, steps: pd.DataFrame, strategy: str) -> dict[str, Any]:
    arm = batches[batches["strategy"] == strategy]
    baseline = batches[batches["strategy"] == REFERENCE]
    return {
        "perplexity": _perplexity(arm),
        "perplexity_change_pct": _perplexity_change_pct(arm, baseline),
        "distinct_experts_mean": weighted_mean(arm["distinct_experts_mean"], arm["num_steps"]),
        "gate_mass_mean": weighted_mean(arm["gate_mass_mean"], arm["num_tokens"]),
        "bits_mean": weighted_mean(arm["bits_mean"], arm["num_tokens"]),
        "energy_j_per_token": _energy_j_per_token(arm),
        "power_w_mean": _power_w_mean(arm, steps),
        "temp_c_peak": _number(arm["temp_c_peak"].max()),
        "latency_ms": _latency_ms(arm, steps),
        "tokens_per_s": _ratio(arm["num_tokens"], arm["latency_s"]),
        "routing_overhead_pct": _scaled(_ratio(arm["routing_overhead_s"], arm["wall_s"]), 100.0),
    }


def _with_limits(figures: dict[str, Any], strategy: str, config: Mapping[str, Any], kind: str | None) -> dict[str, Any]:
    settings = config.get(strategy)
    given = {k: v for k, v in settings.items() if _is_number(v)} if isinstance(settings, Mapping) else {}
    limits = limits_of(strategy, _budget(config), given, figures, kind)
    return figures | {"limits": limits, "limits_held": all_held(limits)}


def _budget(config: Mapping[str, Any]) -> Budget:
    """The limits that the configuration of the run names."""
    latency_ms = config.get("latency_budget_ms")
    values = {
        "power_w": config.get("power_budget_w"),
        "energy_j_per_token": config.get("energy_budget_j_per_token"),
        "temp_c": config.get("temp_budget_c"),
        "latency_s": 1e-3 * latency_ms if _is_number(latency_ms) else None,
        "max_quality_loss_pct": config.get("max_quality_loss_pct"),
    }
    return Budget(**{name: value for name, value in values.items() if _is_number(value)})


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def weighted_mean(values: "pd.Series[float]", weights: "pd.Series[float]") -> float | None:
    """Mean of the values that are there, by weight; None where none has a weight."""
    known = values.notna() & (weights > 0)
    if not known.any():
        return None
    return float(np.average(values[known], weights=weights[known]))


def scored(batches: pd.DataFrame) -> pd.DataFrame:
    """The batches whose perplexity is known."""
    return batches[batches["nll_sum"].notna() & (batches["num_predictions"] > 0)]


def _perplexity(arm: pd.DataFrame) -> float | None:
    known = scored(arm)
    if known.empty:
        return None
    return _number(np.exp(known["nll_sum"].sum() / known["num_predictions"].sum()))


def _perplexity_change_pct(arm: pd.DataFrame, baseline: pd.DataFrame) -> float | None:
    """Change over the batches that both have: a killed run leaves arms of unequal length."""
    on = [name for name in KEY if name != "strategy"]
    both = scored(arm)[on].merge(scored(baseline)[on], on=on)
    own, reference = _perplexity(arm.merge(both, on=on)), _perplexity(baseline.merge(both, on=on))
    if own is None or reference is None:
        return None
    return 100.0 * (own / reference - 1.0)


def _energy_j_per_token(arm: pd.DataFrame) -> dict[str, Any]:
    known = arm[arm["used_j"].notna()]
    if known.empty:
        return {"value": None, "low": None, "high": None, "kind": None}
    # The same text under several seeds, or in several passes, is one unit: its energies are not independent.
    sums = known.groupby("unit")[["used_j", "num_tokens"]].sum().to_numpy(np.float64)
    interval = bootstrap(sums, lambda s: s[..., 0] / s[..., 1])
    return interval._asdict() | {"kind": str(known["used_kind"].iloc[0])}


def _power_w_mean(arm: pd.DataFrame, steps: pd.DataFrame) -> float | None:
    for values, durations in (
        (arm["power_w_mean"], arm["latency_s"]),
        (arm["power_w_mean"], arm["wall_s"]),
        (steps["power_w"], steps["latency_s"]),
    ):
        mean = weighted_mean(values, durations)
        if mean is not None:
            return mean
    return None


def _latency_ms(arm: pd.DataFrame, steps: pd.DataFrame) -> dict[str, float | None]:
    latency_ms = 1e3 * steps["latency_s"].dropna().to_numpy(np.float64)
    if not len(latency_ms):
        return {"mean": _scaled(_ratio(arm["latency_s"], arm["num_steps"]), 1e3), "p90": None, "p99": None}
    p90, p99 = np.percentile(latency_ms, [90, 99])
    return {"mean": float(latency_ms.mean()), "p90": float(p90), "p99": float(p99)}


def _ratio(numerator: "pd.Series[float]", denominator: "pd.Series[float]") -> float | None:
    """Ratio of the sums over the rows where both are known."""
    known = numerator.notna() & (denominator > 0)
    return float(numerator[known].sum() / denominator[known].sum()) if known.any() else None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _telemetry_kind(tables: Mapping[str, pd.DataFrame], env: Mapping[str, Any]) -> str | None:
    """The kind the rows themselves carry; what env.json says only where they carry none."""
    for column in (tables["telemetry"]["kind"], tables["batches"]["energy_kind"]):
        kinds = column.dropna()
        if len(kinds):
            return str(kinds.mode().iloc[0])
    said = _setting("telemetry", env, {}) or _setting("telemetry_kind", env, {})
    return said if said in (Kind.MEASURED, Kind.SIMULATED, Kind.REPLAYED) else None


def _setting(name: str, *sources: Mapping[str, Any]) -> str | None:
    """A string of that name in the first source that has it, at the top or one level below."""
    for source in sources:
        for level in (source, *(value for value in source.values() if isinstance(value, Mapping))):
            if isinstance(level.get(name), str):
                return str(level[name])
    return None
