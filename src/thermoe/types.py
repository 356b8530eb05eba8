"""Values that travel between the packages: host data only, no torch, no behaviour of a device.

Shapes: L MoE layers, E experts per layer. Units are part of the names.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from thermoe.errors import ConfigError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
NUMBER = int | float | np.integer | np.floating  # what counts as a number where a user gives one


class Kind(StrEnum):
    """Where a figure comes from; kinds are never mixed in one number."""

    MEASURED = "measured"
    SIMULATED = "simulated"
    REPLAYED = "replayed"
    PREDICTED = "predicted"


class RoutingStrategy(StrEnum):
    """The strategies of `thermoe.routing.strategies.STRATEGIES`."""

    BASELINE = "baseline"
    STATIC_OPTIMAL = "static_optimal"
    KERNEL_AWARE = "kernel_aware"
    KERNEL_AWARE_TTHA = "kernel_aware_ttha"
    OPPORTUNISTIC = "opportunistic"
    GATE_MASS = "gate_mass"
    EXPERT_SKIPPING = "expert_skipping"
    TOP_P = "top_p"


@dataclass(frozen=True, kw_only=True, slots=True)
class SysState:
    """What may be known about one GPU at one instant; `None` means the sensor was silent.

    Attributes:
        time_s, wall_time_s: Monotonic clock of the source; seconds since the Unix epoch, to join other logs [s].
        source, kind: Name of the source ("nvml:0", "replay:FILE", ...); whether it measured, simulated or replayed.
        temp_c, memory_temp_c: Temperature of the GPU core and of the memory [deg C].
        power_w, power_avg_w: Board power, instant and averaged over the source's own window [W].
        energy_j: Total energy counter since the driver loaded [J].
        gpu_util, memory_util: Share of time in which a kernel ran, or memory was read or written, in [0, 1].
        sm_clock_mhz, memory_clock_mhz: Clocks of the streaming multiprocessors and of the memory [MHz].
        memory_used_bytes, fan_speed: Device memory in use [byte]; fan speed as a share of its maximum, in [0, 1].
        performance_state, throttle_reasons: NVML P-state (0 is fastest), clock-event mask (0x4: software power cap).
        power_limit_w: Enforced power limit [W].
        temp_slowdown_c, temp_shutdown_c: Core temperature at which clocks are cut, and the board shuts down [deg C].
        temp_memory_max_c: Memory temperature limit [deg C].
    """

    time_s: float
    wall_time_s: float
    source: str
    kind: Kind
    temp_c: float | None = None
    memory_temp_c: float | None = None
    power_w: float | None = None
    power_avg_w: float | None = None
    energy_j: float | None = None
    gpu_util: float | None = None
    memory_util: float | None = None
    memory_used_bytes: int | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    fan_speed: float | None = None
    performance_state: int | None = None
    throttle_reasons: int | None = None
    power_limit_w: float | None = None
    temp_slowdown_c: float | None = None
    temp_shutdown_c: float | None = None
    temp_memory_max_c: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, `kind` as its string."""
        return asdict(self) | {"kind": str(self.kind)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `as_dict`; unknown keys are ignored, so that newer logs can be read."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known} | {"kind": Kind(values["kind"])})


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 90 % interval (`low`, `high`; None where unknown) and where it comes from."""

    value: float
    low: float | None
    high: float | None
    kind: Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class MoEShape:
    """Sizes of a model's MoE layers, all alike.

    Attributes:
        num_layers, num_experts, top_k: MoE layers (L), routed experts per layer (E), experts per token (k).
        hidden_size, inter_size: Width of the model (D) and of one expert (I).
    """

    num_layers: int
    hidden_size: int
    inter_size: int
    num_experts: int
    top_k: int

    def expert_bytes(self, bits: float = 16.0) -> float:
        """Bytes of one SwiGLU expert's three matrices [byte]."""
        return 3.0 * self.hidden_size * self.inter_size * bits / 8.0

    def expert_flops_per_row(self) -> float:
        """Floating-point operations of one routed row through one expert."""
        return 6.0 * self.hidden_size * self.inter_size


NAMED_SHAPES: dict[str, MoEShape] = {
    "qwen3-30b-a3b": MoEShape(num_layers=48, hidden_size=2048, inter_size=768, num_experts=128, top_k=8),
    "mixtral-8x7b": MoEShape(num_layers=32, hidden_size=4096, inter_size=14336, num_experts=8, top_k=2),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepWork:
    """What one step of a model (one forward over `num_tokens` live tokens) asks of the hardware.

    Attributes:
        shape, num_tokens: Sizes of the layers that did the work; live tokens in the step.
        distinct_experts, routed_rows: Experts touched and token-expert pairs computed, one entry per layer (L).
        bits: Mean weight precision of the touched experts [bit].
    """

    shape: MoEShape
    num_tokens: int
    distinct_experts: Sequence[float]
    routed_rows: Sequence[float]
    bits: float = 16.0

    def priced_as(self, shape: MoEShape) -> "StepWork":
        """The same routing on another model's layers.

        Each target layer takes the layer of this model at the same relative depth; distinct
        experts keep their share of the experts, routed rows their share of tokens times top_k.
        """
        source = (np.arange(shape.num_layers) * len(self.distinct_experts)) // shape.num_layers
        expert_scale = shape.num_experts / self.shape.num_experts
        row_scale = shape.top_k / self.shape.top_k
        return StepWork(
            shape=shape,
            num_tokens=self.num_tokens,
            distinct_experts=[self.distinct_experts[int(i)] * expert_scale for i in source],
            routed_rows=[self.routed_rows[int(i)] * row_scale for i in source],
            bits=self.bits,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What has to hold; `None` means not limited.

    Attributes:
        power_w, energy_j_per_token: Mean board power [W]; energy per generated or scored token [J].
        temp_c, latency_s: Core temperature [deg C]; latency of one step [s].
        max_quality_loss_pct: Perplexity increase allowed, by calibration [%].
    """

    power_w: float | None = None
    energy_j_per_token: float | None = None
    temp_c: float | None = None
    latency_s: float | None = None
    max_quality_loss_pct: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            least = 0.0 if f.name == "max_quality_loss_pct" else np.nextafter(0.0, 1.0)
            if value is not None and not (isinstance(value, NUMBER) and least <= value < np.inf):
                raise ConfigError(f"budget {f.name} = {value!r}: needs a positive finite number; None means no limit")

    def with_changes(self, **changes: float | None) -> "Budget":
        """A copy with some limits replaced; an unknown name is a `ConfigError`."""
        known = {f.name for f in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise ConfigError(f"unknown budget {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingKnobs:
    """Everything the hardware's state may change about routing, as host values.

    Selection works on each token's own top-k first and then, where `union` is set, on the set S that a batch loads:
    S holds every expert among a token's first `protected_k0` choices, every expert whose value in the batch reaches
    `price * cost`, and the `max_experts` most valuable if that is not zero. The value of an expert is the sum over
    the batch of (normalised gate) to the power `value_power`. Each token then uses its best `top_k` experts inside S.
    Weights always come from the unbiased gates.

    Attributes:
        price: (L,) price of loading one unit of `cost`, in units of value; inf loads the protected choices alone.
        cost: (L, E) relative cost of touching an expert, about 1 on average.
        bias: (L, E) added to the scores that rank experts (hardware, load balance, learned).
        allowed: (L, E) experts that may be used at all.
        top_k, protected_k0: (L,) experts per token, at most the model's own; first choices that are always loaded.
        max_experts: (L,) the most valuable experts always loaded; 0 for none.
        gate_mass: (L,) share of its own gate mass up to which a token keeps its best experts (top-p); 1 keeps all.
        skip_ratio: (L,) a token drops experts whose gate is below this share of its best; 0 keeps all.
        value_power, union: Power of the normalised gate in an expert's value; whether batches choose experts at all.
        min_bits, max_bits: Weight precisions allowed [bit].
    """

    price: FloatArray
    cost: FloatArray
    bias: FloatArray
    allowed: BoolArray
    top_k: IntArray
    protected_k0: IntArray
    max_experts: IntArray
    gate_mass: FloatArray
    skip_ratio: FloatArray
    value_power: float = 2.0
    union: bool = False
    min_bits: int = 16
    max_bits: int = 16

    @classmethod
    def neutral(cls, num_layers: int, num_experts: int, top_k: int) -> Self:
        """Knobs under which every token keeps the model's own choice."""
        layers, experts = (num_layers,), (num_layers, num_experts)
        return cls(
            price=np.zeros(layers),
            cost=np.ones(experts),
            bias=np.zeros(experts),
            allowed=np.ones(experts, dtype=np.bool_),
            top_k=np.full(layers, top_k, dtype=np.int64),
            protected_k0=np.full(layers, top_k, dtype=np.int64),
            max_experts=np.zeros(layers, dtype=np.int64),
            gate_mass=np.ones(layers),
            skip_ratio=np.zeros(layers),
        )

    def __post_init__(self) -> None:
        for f in fields(self):
            knob = getattr(self, f.name)
            if not isinstance(knob, np.ndarray):
                continue
            needed = self.cost.shape if f.name in ("cost", "bias", "allowed") else self.cost.shape[:1]
            if knob.shape != needed:
                raise ConfigError(f"knob {f.name} has shape {knob.shape}, needed {needed}")
            if np.isnan(knob).any():
                raise ConfigError(f"knob {f.name} holds NaN; every entry must be a number")
        if (self.top_k < 1).any() or (self.protected_k0 < 0).any():
            raise ConfigError("knobs need top_k >= 1 and protected_k0 >= 0 in every layer")


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingStatistics:
    """Counters of the data plane since they were last drained.

    Attributes:
        num_groups, num_tokens: Batches (sets of tokens that share a union) and live tokens counted.
        tokens_per_expert, loads_per_expert: (L, E) live tokens routed to, and batches that touched, each expert.
        gate_mass_kept: (L,) share of the model's own gate mass that was kept, mean over tokens.
        changed_slots: (L,) share of the model's own choices that were replaced or dropped.
    """

    num_groups: int
    num_tokens: int
    tokens_per_expert: FloatArray
    loads_per_expert: FloatArray
    gate_mass_kept: FloatArray
    changed_slots: FloatArray

    @property
    def distinct_experts(self) -> FloatArray:
        """(L,) mean number of distinct experts a batch touched."""
        return np.asarray(self.loads_per_expert.sum(axis=1) / max(self.num_groups, 1), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutcome:
    """What one step took, by a plant or by a prediction; `kind` says which."""

    latency_s: float
    energy_j: float
    kind: Kind
    extra: dict[str, float] = field(default_factory=dict)
