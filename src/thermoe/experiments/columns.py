"""Columns and types of the four tables of a run folder (docs/run_folder.md)."""

from dataclasses import fields
from typing import Any

import pyarrow as pa

from thermoe.types import SysState

_KEY = [("workload", pa.string()), ("seed", pa.int64()), ("strategy", pa.string()), ("batch_index", pa.int64())]
_WHOLE, _TEXT, _YES_NO = pa.int64(), pa.string(), pa.bool_()
_LIST = pa.list_(pa.float64())
LOSSES = (
    *("loss_power", "loss_temp", "loss_latency", "loss_throughput", "loss_energy"),
    *("loss_total", "loss_task", "loss_aux"),
)


def _columns(names: str, kind: Any = None) -> list[tuple[str, Any]]:
    return [(name, kind if kind is not None else pa.float64()) for name in names.split()]


_BATCHES = [
    *_columns("num_tokens num_steps", _WHOLE),
    *_columns("nll_sum"),
    *_columns("num_predictions", _WHOLE),
    *_columns("energy_j energy_j_integrated"),
    *_columns("energy_kind", _TEXT),
    *_columns("latency_s predicted_energy_j predicted_latency_s power_w_mean temp_c_mean temp_c_peak"),
    *_columns("distinct_experts_mean gate_mass_mean changed_slots_mean bits_mean"),
    *_columns("routing_overhead_s adaptation_overhead_s wall_s"),
    *_columns("throttled", _YES_NO),
    *_columns("started_wall_s"),
    *_columns("arm_state", _TEXT),
]
_STEPS = [
    *_columns("step", _WHOLE),
    *_columns("time_s latency_s energy_j"),
    *_columns("num_tokens", _WHOLE),
    *_columns("nll_sum distinct_experts_mean gate_mass_mean price power_w temp_c thermal_headroom_c target"),
    *_columns(" ".join(LOSSES)),
]
_EXPERTS = [
    *_columns("layer", _WHOLE),
    *_columns("distinct_experts_mean gate_mass_mean changed_slots_mean"),
    *_columns("tokens_per_expert loads_per_expert time_s_per_expert", _LIST),
]
_STATE_KINDS = {"source": _TEXT, "kind": _TEXT, "memory_used_bytes": _WHOLE} | dict.fromkeys(
    ("performance_state", "throttle_reasons"), _WHOLE
)
_TELEMETRY = [(f.name, _STATE_KINDS.get(f.name, pa.float64())) for f in fields(SysState)]

SCHEMAS: dict[str, Any] = {
    "batches": pa.schema(_KEY + _BATCHES),
    "steps": pa.schema(_KEY + _STEPS),
    "experts": pa.schema(_KEY + _EXPERTS),
    "telemetry": pa.schema(_KEY + _TELEMETRY),
}
