"""The least time an operation can take on a card, and the targets that are held against it.

Floor: bytes of the touched experts (scales included) and of the activations at the bandwidth of a large copy, or
operations at the rate of a large matrix product, whichever takes longer. Pure reads are about 2 % faster than a
copy, so that a perfect kernel can come in slightly under it.
"""

from dataclasses import dataclass

from benchmarks.kernels.formats import FORMATS
from thermoe.types import MoEShape

FLOAT32_BYTES, BF16_BYTES = 4, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a card gives: copy bandwidth [TB/s], sustained bf16 and fp8 matrix products [TFLOP/s]."""

    copy_tb_s: float
    matmul_tflop_s: float
    fp8_tflop_s: float

    def rate_tflop_s(self, dtype: str) -> float:
        """Rate at which a format can be multiplied; integer codes are multiplied in bf16."""
        return self.fp8_tflop_s if dtype.startswith("fp8") else self.matmul_tflop_s


REFERENCE_CARD = Card(copy_tb_s=4.30, matmul_tflop_s=660.0, fp8_tflop_s=1207.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one execution asks for: least bytes moved and floating-point operations."""

    bytes_moved: float
    flops: float

    def floor_us(self, card: Card, dtype: str) -> float:
        """Least time [us]."""
        return max(self._memory_us(card), self._matrix_us(card, dtype))

    def bound_by_memory(self, card: Card, dtype: str) -> bool:
        """Whether the bytes take longer than the operations."""
        return self._memory_us(card) >= self._matrix_us(card, dtype)

    def _memory_us(self, card: Card) -> float:
        return self.bytes_moved / card.copy_tb_s / 1e6

    def _matrix_us(self, card: Card, dtype: str) -> float:
        return self.flops / card.rate_tflop_s(dtype) / 1e6


def expert_mlp_work(shape: MoEShape, dtype: str, num_tokens: int, distinct_experts: float) -> Work:
    """Touched experts once, hidden states in and out once, ids and weights; what lies between stays on the chip."""
    slots = num_tokens * shape.top_k
    activations = 2.0 * num_tokens * shape.hidden_size * BF16_BYTES + slots * 2.0 * FLOAT32_BYTES
    return Work(
        bytes_moved=distinct_experts * FORMATS[dtype].expert_bytes(shape) + activations,
        flops=slots * shape.expert_flops_per_row(),
    )


def routing_work(shape: MoEShape, num_tokens: int, *, plan: bool) -> Work:
    """Scores in; ids, weights and, where asked for, the plan out. Far below the launch of any kernel."""
    slots = num_tokens * shape.top_k
    out = 2.0 * slots + (slots + shape.num_experts + 1 if plan else 0)
    return Work(bytes_moved=FLOAT32_BYTES * (num_tokens * shape.num_experts + out), flops=0.0)


def dispatch_work(shape: MoEShape, num_tokens: int) -> Work:
    """Ids and weights in, the plan out; a launch takes longer."""
    slots = num_tokens * shape.top_k
    return Work(bytes_moved=float(FLOAT32_BYTES * (3 * slots + shape.num_experts + 1)), flops=0.0)


def combine_work(shape: MoEShape, num_tokens: int) -> Work:
    """Every slot's row in, every token's row out."""
    slots = num_tokens * shape.top_k
    rows = (slots + num_tokens) * shape.hidden_size * BF16_BYTES
    return Work(bytes_moved=float(rows + 2 * slots * FLOAT32_BYTES), flops=0.0)


def dequantize_work(shape: MoEShape, dtype: str) -> Work:
    """All experts' codes and scales in, bf16 weights out."""
    each = FORMATS[dtype].expert_bytes(shape) + shape.expert_bytes(8.0 * BF16_BYTES)
    return Work(bytes_moved=shape.num_experts * each, flops=0.0)


@dataclass(frozen=True, slots=True)
class Target:
    """What has to be reached on the reference card: so many us, or so many floors; and mJ where energy counts."""

    latency_us: float | None = None
    floors: float | None = None
    energy_mj: float | None = None


_QWEN, _MIXTRAL = "qwen3-30b-a3b", "mixtral-8x7b"
TARGETS: dict[tuple[str, str, str, int], Target] = {
    ("expert_mlp", _QWEN, "bf16", 1): Target(22.0),
    ("expert_mlp", _QWEN, "bf16", 16): Target(floors=1.05),
    ("expert_mlp", _QWEN, "bf16", 64): Target(floors=1.03),
    ("expert_mlp", _QWEN, "bf16", 4096): Target(650.0),
    ("expert_mlp", _QWEN, "fp8", 1): Target(20.0),
    ("expert_mlp", _QWEN, "fp8", 16): Target(105.0),
    ("expert_mlp", _QWEN, "fp8", 64): Target(155.0),
    ("expert_mlp", _QWEN, "fp8", 4096): Target(500.0),
    ("expert_mlp", _QWEN, "int4", 1): Target(14.0, energy_mj=4.5),
    ("expert_mlp", _QWEN, "int4", 16): Target(62.0, energy_mj=38.0),
    ("expert_mlp", _QWEN, "int4", 64): Target(92.0, energy_mj=62.0),
    ("expert_mlp", _QWEN, "int4", 4096): Target(750.0),
    ("expert_mlp", _QWEN, "int2", 16): Target(45.0),
    ("expert_mlp", _MIXTRAL, "int4", 16): Target(205.0),
    ("routing", _QWEN, "f32", 1): Target(4.0),
    ("routing", _QWEN, "f32", 16): Target(4.5),
    ("routing", _QWEN, "f32", 64): Target(5.0),
    ("routing", _QWEN, "f32", 4096): Target(9.0),
}
BANK_OVER_PLAIN = 1.05  # the nested bank at int4 against plain int4, in the same run


def target_factor(op: str, work: Work, card: Card, dtype: str) -> float:
    """By how much a target of the reference card is longer on this one; a launch takes as long on both."""
    if op == "routing":
        return 1.0
    return work.floor_us(card, dtype) / work.floor_us(REFERENCE_CARD, dtype)


def targets(key: tuple[str, str, str, int], work: Work, card: Card) -> dict[str, float | None]:
    """Targets of a row for the reference card and for this one; None where there are none."""
    target, dtype = TARGETS.get(key, Target()), key[2]
    factor = target_factor(key[0], work, card, dtype)
    latency_us = target.latency_us
    if target.floors is not None:
        latency_us = target.floors * work.floor_us(REFERENCE_CARD, dtype)
    figures = {"target_us": latency_us, "target_mj": target.energy_mj}
    scaled = {f"{name}_this_card": None if value is None else value * factor for name, value in figures.items()}
    return figures | scaled
