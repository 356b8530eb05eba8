"""Run folders made up for tests: the files that docs/run_folder.md describes, with plausible numbers."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

STRATEGIES = ("baseline", "static_optimal", "opportunistic", "kernel_aware", "kernel_aware_ttha")
# Distinct experts and perplexity of each strategy relative to baseline.
EFFECTS = {
    "baseline": (1.0, 1.0),
    "static_optimal": (0.70, 1.006),
    "opportunistic": (0.68, 1.009),
    "kernel_aware": (0.66, 1.005),
    "kernel_aware_ttha": (0.62, 1.007),
    "gate_mass": (0.80, 1.02),
    "expert_skipping": (0.85, 1.03),
    "top_p": (0.83, 1.015),
}
LOSSES = ("loss_power", "loss_temp", "loss_latency", "loss_energy", "loss_total")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the run was: sizes, names and what it could observe."""

    workloads: tuple[str, ...] = ("prose", "code")
    strategies: tuple[str, ...] = STRATEGIES
    seeds: tuple[int, ...] = (0,)
    num_batches: int = 5
    num_steps: int = 64
    num_layers: int = 6
    num_experts: int = 16
    batch_size: int = 16
    samples: int = 20
    telemetry: bool = True
    kind: str = "simulated"
    nulls: tuple[str, ...] = field(default=())

    def arms(self):
        return [(w, seed, s) for w in self.workloads for seed in self.seeds for s in self.strategies]


def tables_of_batch(plan: Plan, workload: str, seed: int, strategy: str, batch: int, rng) -> dict[str, pd.DataFrame]:
    """The four tables of one batch of one arm."""
    key = {"workload": workload, "seed": seed, "strategy": strategy, "batch_index": batch}
    experts_share, ppl_factor = EFFECTS.get(strategy, (0.9, 1.01))
    scale = 1.0 + 0.15 * plan.workloads.index(workload)
    steps_i = np.arange(plan.num_steps)
    distinct = 44.0 * experts_share * (1.0 + 0.05 * rng.standard_normal(plan.num_steps))
    latency_s = 0.004 + 0.0002 * distinct * scale + 0.0004 * rng.gamma(2.0, 1.0, plan.num_steps)
    power_w = 430.0 + 3.0 * distinct + 8.0 * rng.standard_normal(plan.num_steps)
    energy_j = power_w * latency_s
    tokens = np.full(plan.num_steps, plan.batch_size)
    nll = (2.4 * scale + 0.05 * (batch % 3) + np.log(ppl_factor)) * tokens
    begin_s = batch * latency_s.sum()
    time_s = begin_s + latency_s.cumsum()
    temp_c = 34.0 + 0.038 * power_w * (1.0 - np.exp(-(time_s + 0.1) / 0.8))
    adaptive = strategy == "kernel_aware_ttha"
    step = plan.num_steps * batch + steps_i
    decay = np.exp(-step / 80.0)
    steps = pd.DataFrame(
        key
        | {"step": step, "time_s": time_s, "latency_s": latency_s, "energy_j": energy_j, "num_tokens": tokens}
        | {"nll_sum": nll, "distinct_experts_mean": distinct, "gate_mass_mean": 0.97}
        | {"price": 0.04 * (1.0 - decay) if adaptive else (0.03 if strategy == "kernel_aware" else 0.0)}
        | {"power_w": power_w, "temp_c": temp_c, "thermal_headroom_c": 89.0 - temp_c}
        | {"target": 0.3 if adaptive else np.nan}
        | {
            name: (0.2 * (i + 1) * decay + 0.01 * rng.random(plan.num_steps)) if adaptive else np.nan
            for i, name in enumerate(LOSSES)
        }
        | {"loss_throughput": np.nan, "loss_task": np.nan, "loss_aux": 0.02 if adaptive else np.nan}
    )
    usage = rng.gamma(1.5, 1.0, (plan.num_layers, plan.num_experts))
    usage[:, : plan.num_experts // 4] *= experts_share**2
    experts = pd.DataFrame(
        [
            key
            | {"layer": layer, "distinct_experts_mean": 44.0 * experts_share * (0.9 + 0.04 * layer)}
            | {"gate_mass_mean": 0.97, "changed_slots_mean": 0.1}
            | {"tokens_per_expert": list(usage[layer] * 100), "loads_per_expert": list(usage[layer] * 10)}
            | {"time_s_per_expert": list(usage[layer] * 1e-6)}
            for layer in range(plan.num_layers)
        ]
    )
    sampled = np.linspace(0, plan.num_steps - 1, plan.samples).astype(int)
    telemetry = pd.DataFrame(
        key
        | {"time_s": time_s[sampled], "wall_time_s": 1.79e9 + time_s[sampled], "source": "simulated"}
        | {"kind": plan.kind, "temp_c": temp_c[sampled], "power_w": power_w[sampled], "fan_speed": np.nan}
    )
    batches = pd.DataFrame(
        [
            key
            | {"num_tokens": int(tokens.sum()), "num_steps": plan.num_steps, "nll_sum": float(nll.sum())}
            | {"num_predictions": int(tokens.sum()), "energy_j": energy_j.sum()}
            | {"energy_j_integrated": energy_j.sum() * 1.01, "energy_kind": plan.kind, "latency_s": latency_s.sum()}
            | {"predicted_energy_j": energy_j.sum() * 0.97, "predicted_latency_s": latency_s.sum() * 1.02}
            | {"power_w_mean": energy_j.sum() / latency_s.sum(), "temp_c_mean": temp_c.mean()}
            | {"temp_c_peak": temp_c.max(), "distinct_experts_mean": distinct.mean(), "gate_mass_mean": 0.97}
            | {"changed_slots_mean": 0.1, "bits_mean": 16.0, "routing_overhead_s": 0.002, "wall_s": 0.2}
            | {"adaptation_overhead_s": 0.001 if adaptive else 0.0, "throttled": False}
            | {"started_wall_s": 1.79e9 + batch, "arm_state": "{}"}
        ]
    )
    tables = {"batches": batches, "steps": steps, "experts": experts, "telemetry": telemetry}
    if not plan.telemetry:
        tables["telemetry"] = telemetry.iloc[:0]
    return {name: null_columns(table, plan.nulls) for name, table in tables.items()}


def null_columns(table: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """The table with columns emptied the way a writer without the sensor would."""
    return table.assign(**{name: None for name in names if name in table.columns})


def make_tables(plan: Plan) -> dict[str, pd.DataFrame]:
    """All batches of all arms, joined."""
    rng = np.random.default_rng(7)
    parts = [tables_of_batch(plan, *arm, batch, rng) for arm in plan.arms() for batch in range(plan.num_batches)]
    return {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}


def write_heading(folder: Path, plan: Plan) -> None:
    """config.toml and env.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(
        'model = "models/reference_moe"\npriced_as = "qwen3-30b-a3b"\nbatch_size = 16\n\n[kernel_aware]\nk0 = 4\n'
    )
    env = {"gpu": "NVIDIA H200 (digital twin)", "telemetry": plan.kind, "torch": "2.13.0", "seeds": list(plan.seeds)}
    (folder / "env.json").write_text(json.dumps(env))


def write_run(folder: Path, plan: Plan | None = None) -> Path:
    """A run that came to its end."""
    plan = plan or Plan()
    write_heading(folder, plan)
    for name, table in make_tables(plan).items():
        table.to_parquet(folder / f"{name}.parquet")
    return folder


def write_killed_run(folder: Path, plan: Plan | None = None, num_parts: int = 12) -> Path:
    """A run that was killed: finished parts, and one that was being written."""
    plan = plan or Plan()
    write_heading(folder, plan)
    rng = np.random.default_rng(7)
    order = [(batch, arm) for batch in range(plan.num_batches) for arm in plan.arms()]
    for number, (batch, arm) in enumerate(order[:num_parts]):
        part = folder / "parts" / f"{number:06d}"
        part.mkdir(parents=True)
        for name, table in tables_of_batch(plan, *arm, batch, rng).items():
            table.to_parquet(part / f"{name}.parquet")
    unfinished = folder / "parts" / f"{num_parts:06d}.tmp-4711"
    unfinished.mkdir()
    (unfinished / "batches.parquet").write_bytes(b"PAR1 torn")
    return folder


MEASURED_NULLS = (
    *("predicted_energy_j", "predicted_latency_s", "nll_sum", "adaptation_overhead_s", "thermal_headroom_c"),
    *("fan_speed", "loss_task", "target", "changed_slots_mean", "time_s_per_expert"),
)
EVERYTHING = (
    *("nll_sum", "num_predictions", "energy_j", "energy_j_integrated", "energy_kind", "latency_s"),
    *("predicted_energy_j", "predicted_latency_s", "power_w_mean", "temp_c_mean", "temp_c_peak"),
    *("distinct_experts_mean", "gate_mass_mean", "changed_slots_mean", "bits_mean", "routing_overhead_s"),
    *("adaptation_overhead_s", "wall_s", "throttled", "started_wall_s", "time_s", "price", "power_w", "temp_c"),
    *("thermal_headroom_c", "target", "tokens_per_expert", "loads_per_expert", "time_s_per_expert"),
    *("wall_time_s", "kind", "source", "loss_aux", *LOSSES),
)
