"""Rows of the tables, from what was seen step by step."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from thermoe.experiments.board import BatchFigures, StepFigures
from thermoe.experiments.columns import LOSSES
from thermoe.experiments.tally import Tally
from thermoe.types import FloatArray, Kind, StepOutcome


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One step: what it did, what it took, what was predicted.

    Attributes:
        num_tokens: Tokens scored or generated.
        nll: Negative log-likelihood summed over them [nat]; None where nothing is scored.
        distinct_L, mass_L: (L,) distinct experts touched and gate mass kept.
    """

    step: int
    figures: StepFigures
    predicted: StepOutcome
    num_tokens: int
    nll: float | None
    distinct_L: FloatArray
    mass_L: FloatArray


class BatchRecorder:
    """Collects the steps of one batch and makes the rows of its tables."""

    def __init__(self) -> None:
        self._records: list[StepRecord] = []
        self._terms: list[dict[str, float]] = []

    def add(self, records: list[StepRecord], terms: dict[str, float]) -> None:
        """Steps of one control period, with the terms the control plane logged at its end."""
        self._records += records
        self._terms += [terms] * len(records)

    def step_rows(self) -> list[dict[str, Any]]:
        """Rows of table `steps`."""
        return [_step_row(r, terms) for r, terms in zip(self._records, self._terms, strict=True)]

    def batch_row(self, figures: BatchFigures, tally: Tally, kind: Kind) -> dict[str, Any]:
        """The row of table `batches`, but for overheads and the arm's state."""
        records, window = self._records, figures.window
        nlls = [r.nll for r in records if r.nll is not None]
        latencies = [r.figures.latency_s for r in records if r.figures.latency_s is not None]
        return {
            "num_tokens": sum(r.num_tokens for r in records),
            "num_steps": len(records),
            "nll_sum": float(np.sum(nlls)) if nlls else None,
            "num_predictions": sum(r.num_tokens for r in records if r.nll is not None),
            "energy_j": figures.energy_j,
            "energy_j_integrated": figures.energy_integrated_j,
            "energy_kind": str(kind),
            "latency_s": float(np.sum(latencies)) if latencies else None,
            "predicted_energy_j": float(np.sum([r.predicted.energy_j for r in records])),
            "predicted_latency_s": float(np.sum([r.predicted.latency_s for r in records])),
            "power_w_mean": figures.power_w,
            "temp_c_mean": window.temp_mean_c,
            "temp_c_peak": window.temp_peak_c,
            "distinct_experts_mean": float(np.mean([r.distinct_L.mean() for r in records])),
            "gate_mass_mean": float(tally.gate_mass.mean()),
            "changed_slots_mean": float(tally.changed_slots.mean()),
            "throttled": window.throttled,
        }

    def expert_rows(self, tally: Tally) -> list[dict[str, Any]]:
        """Rows of table `experts`, one per layer."""
        distinct_L = np.mean([r.distinct_L for r in self._records], axis=0)
        times_LE = self._expert_times_s(tally)
        return [
            {
                "layer": layer,
                "distinct_experts_mean": float(distinct_L[layer]),
                "gate_mass_mean": float(tally.gate_mass[layer]),
                "changed_slots_mean": float(tally.changed_slots[layer]),
                "tokens_per_expert": tally.tokens_LE[layer].tolist(),
                "loads_per_expert": tally.loads_LE[layer].tolist(),
                "time_s_per_expert": None if times_LE is None else times_LE[layer].tolist(),
            }
            for layer in range(len(distinct_L))
        ]

    def _expert_times_s(self, tally: Tally) -> FloatArray | None:
        """(L, E) predicted time [s]: that of all MoE layers, shared among experts by how often each was loaded."""
        parts = [r.predicted.extra.get("moe_latency_s") for r in self._records]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or not tally.loads_LE.any():
            return None
        times_LE: FloatArray = float(np.sum(known)) * tally.loads_LE / tally.loads_LE.sum()
        return times_LE


def _step_row(record: StepRecord, terms: dict[str, float]) -> dict[str, Any]:
    figures, state = record.figures, record.figures.state
    temp_c = None if state is None else state.temp_c
    limit_c = None if state is None else state.temp_slowdown_c
    return {
        "step": record.step,
        "time_s": figures.time_s,
        "latency_s": figures.latency_s,
        "energy_j": figures.energy_j,
        "num_tokens": record.num_tokens,
        "nll_sum": record.nll,
        "distinct_experts_mean": float(record.distinct_L.mean()),
        "gate_mass_mean": float(record.mass_L.mean()),
        "power_w": figures.power_w,
        "temp_c": temp_c,
        "thermal_headroom_c": None if temp_c is None or limit_c is None else limit_c - temp_c,
    } | {name: terms.get(name) for name in ("price", "target", *LOSSES)}
