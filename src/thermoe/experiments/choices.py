"""What a run can be asked for by name."""

import re
from enum import StrEnum

from thermoe.format_names import format_name
from thermoe.types import NAMED_SHAPES, RoutingStrategy


class TextWorkload(StrEnum):
    """What is done with a text.

    TEACHER_FORCED: B sequences in step; every position is one batch of B tokens, scored.
    PREFILL: whole prompts in one forward each, scored.
    GENERATION: prompts from the text, new tokens by greedy `generate()`; nothing to score.
    """

    TEACHER_FORCED = "teacher_forced"
    PREFILL = "prefill"
    GENERATION = "generation"


class TensorWorkload(StrEnum):
    """Synthetic activations for the self-contained MoE block."""

    STANDARD = "standard"
    HIGH_COMPLEXITY = "high_complexity"
    SMALL_BATCH = "small_batch"
    LARGE_BATCH = "large_batch"


TEXT_WORKLOADS = tuple(str(w) for w in TextWorkload)
TENSOR_WORKLOADS = tuple(str(w) for w in TensorWorkload)
STRATEGY_NAMES = tuple(str(s) for s in RoutingStrategy)
TEXT_STRATEGIES = ("baseline", "opportunistic", "kernel_aware")
TENSOR_STRATEGIES = ("baseline", "opportunistic", "gate_mass", "top_p")
OWN_SHAPE = "model"
PRICE_NAMES = (*NAMED_SHAPES, OWN_SHAPE)
DEVICES = ("cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16")
TELEMETRY_FORMS = "auto, nvml, nvml:INDEX, simulated, replay:FILE"
TELEMETRY = re.compile(r"auto|simulated|nvml(:[0-9]+)?|replay:.*", re.DOTALL)
#: How the experts of the block are held: these formats in turn.
EXPERT_TYPES: dict[str, tuple[str, ...]] = {
    "simple": ("dense",),
    "quantized": ("int4",),
    "mixed": ("dense", "int8", "int4", "int2"),
}
#: How the experts of a Hugging Face model may be held instead of its own weights.
EXPERT_FORMATS = ("int2", "int4", "int8", "fp8", "fp8_block", "bank", "bank8", "bank4", "bank2")
#: Strategies whose knobs never change while a run goes on.
FIXED_STRATEGIES = frozenset(
    {
        RoutingStrategy.BASELINE,
        RoutingStrategy.STATIC_OPTIMAL,
        RoutingStrategy.OPPORTUNISTIC,
        RoutingStrategy.GATE_MASS,
        RoutingStrategy.EXPERT_SKIPPING,
        RoutingStrategy.TOP_P,
    }
)
#: Strategies that need the sensitivities measured on calibration text.
CALIBRATED_STRATEGIES = frozenset(
    {RoutingStrategy.STATIC_OPTIMAL, RoutingStrategy.KERNEL_AWARE, RoutingStrategy.KERNEL_AWARE_TTHA}
)
#: Strategies that steer to limits of the hardware.
ADAPTIVE_STRATEGIES = frozenset({RoutingStrategy.KERNEL_AWARE_TTHA})


def spelled(name: str | None) -> str | None:
    """A format as the lists above have it."""
    return None if name is None else format_name(name)
