"""Figures of an attachment: sums of what was counted, and the entry of summary.json that they make.

L layers.
"""

from collections import deque
from typing import Any

import numpy as np

from thermoe.adaptation.limits import QUALITY, all_held, limits_of
from thermoe.runtime.control_plane import ControlPlane
from thermoe.telemetry import EnergyWindow
from thermoe.types import FloatArray, Kind, MoEShape, RoutingStatistics, RoutingStrategy

LATENCIES_KEPT = 100_000
LOSS_ROUNDING_PCT = 1e-6


class Totals:
    """Running sums since the figures began, from drained counters."""

    def __init__(self, shape: MoEShape) -> None:
        self.shape = shape
        self.num_tokens, self.num_groups = 0, 0
        self.loads_L: FloatArray = np.zeros(shape.num_layers)
        self.mass_sum = 0.0
        self.latencies_s: deque[float] = deque(maxlen=LATENCIES_KEPT)

    def add(self, statistics: RoutingStatistics) -> None:
        """Take in one drain."""
        self.num_tokens += statistics.num_tokens
        self.num_groups += statistics.num_groups
        self.loads_L = self.loads_L + statistics.loads_per_expert.sum(axis=1)
        self.mass_sum += float(statistics.gate_mass_kept.mean()) * statistics.num_tokens


def summary_of(
    totals: Totals, window: EnergyWindow, *, drawn: tuple[float, float] | None, bits: float, overhead: float | None
) -> dict[str, Any]:
    """What a strategy's entry of summary.json holds, for an attachment; None for what it cannot know.

    Args:
        totals: Sums since the figures began.
        window: What the sensors saw since.
        drawn: Energy [J] and time [s] where they are known better than by sensors.
        bits: Weight precision that the figures are for [bit].
        overhead: The control plane's share of the time that passed on the host's own clock, in [0, 1].
    """
    # A counter that has not moved yet is no energy of 0.
    energy_j, power_w = window.energy_counter_j or window.energy_integrated_j or None, window.power_mean_w
    if drawn is not None:
        energy_j, power_w = drawn[0], drawn[0] / drawn[1] if drawn[1] > 0 else None
    per_token = None if energy_j is None or totals.num_tokens == 0 else energy_j / totals.num_tokens
    groups = max(totals.num_groups, 1)
    milliseconds = 1e3 * np.array(totals.latencies_s)
    known = milliseconds.size > 0
    return {
        "perplexity": None,
        "perplexity_change_pct": None,
        "distinct_experts_mean": float(totals.loads_L.mean() / groups) if totals.num_groups else None,
        "gate_mass_mean": totals.mass_sum / totals.num_tokens if totals.num_tokens else None,
        "bits_mean": bits,
        "energy_j_per_token": {"value": per_token, "low": None, "high": None, "kind": str(window.kind)},
        "power_w_mean": power_w,
        "temp_c_peak": window.temp_peak_c,
        "latency_ms": {
            "mean": float(milliseconds.mean()) if known else None,
            "p90": float(np.percentile(milliseconds, 90)) if known else None,
            "p99": float(np.percentile(milliseconds, 99)) if known else None,
        },
        "tokens_per_s": totals.num_tokens / window.duration_s if window.duration_s > 0 else None,
        "routing_overhead_pct": None if overhead is None else 100.0 * overhead,
    }


def with_limits(figures: dict[str, Any], plane: ControlPlane, kind: str) -> dict[str, Any]:
    """The entry with what the control plane was told to hold, and whether it was held so far."""
    targets = {key: value for key, value in plane.router.settings.items() if key.startswith("target_")}
    limits = limits_of(plane.strategy, plane.budget, targets, figures, kind)
    loss_pct = _predicted_loss_pct(plane)
    if QUALITY in limits and loss_pct is not None:
        # The highest price within a limit loses as much as the limit, up to rounding.
        held = loss_pct <= limits[QUALITY]["limit"] + LOSS_ROUNDING_PCT
        limits[QUALITY] |= {"value": loss_pct, "held": held, "kind": str(Kind.PREDICTED)}
    return figures | {"limits": limits, "limits_held": all_held(limits)}


def _predicted_loss_pct(plane: ControlPlane) -> float | None:
    """Perplexity increase that calibration says of the knobs in force [%]; None where it says nothing."""
    calibration, knobs = plane.calibration, plane.knobs
    if calibration is None or knobs is None:
        return None
    if plane.strategy is RoutingStrategy.STATIC_OPTIMAL:
        return float(plane.router.memory["point"]["loss_pct"])
    return calibration.loss_at(float(knobs.price.mean())) if np.isfinite(knobs.price).all() else None
