"""What an operation asks of the hardware: bytes, operations, experts touched. Arrays broadcast, B entries."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thermoe.errors import CostError
from thermoe.types import FloatArray, MoEShape

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Work of one execution, one entry per case (B,).

    Attributes:
        distinct_experts: Experts whose weights are read; 0 for operations without weights.
        weight_bytes: Bytes of those weights [byte].
        row_bytes: Bytes of activations read and written [byte].
        rows: Routed rows.
        flops: Floating-point operations.
        depth: Length of the sums that follow one another in it, in elements; 0 for operations without weights.
    """

    distinct_experts: FloatArray
    weight_bytes: FloatArray
    row_bytes: FloatArray
    rows: FloatArray
    flops: FloatArray
    depth: FloatArray

    def table(self) -> FloatArray:
        """(B, 6) in the order of the attributes."""
        columns = (self.distinct_experts, self.weight_bytes, self.row_bytes, self.rows, self.flops, self.depth)
        return np.stack([np.atleast_1d(c) for c in columns], axis=1)


def expected_distinct_experts(num_experts: int, top_k: int, num_tokens: "ArrayLike") -> FloatArray:
    """Experts that tokens touch when each picks `top_k` at random: E (1 - (1 - k/E)^T)."""
    missed = (1.0 - top_k / num_experts) ** np.asarray(num_tokens, dtype=np.float64)
    return np.asarray(num_experts * (1.0 - missed), dtype=np.float64)


def work_of(op: str, shape: MoEShape, routed_rows: "ArrayLike", distinct: "ArrayLike", bits: float) -> Work:
    """Work of one layer's operation.

    Args:
        op: One of `OPERATIONS`.
        shape: Sizes of the layer.
        routed_rows: Token-expert pairs (B,).
        distinct: Distinct experts touched (B,).
        bits: Precision of weights [bit]; activations have 16 at least.

    Raises:
        CostError: An unknown operation, or counts that are negative or not finite.
    """
    counts = OPERATIONS.get(op)
    if counts is None:
        raise CostError(f"no physics is known for operation {op}: choose from {', '.join(OPERATIONS)}")
    rows, touched = np.broadcast_arrays(np.asarray(routed_rows, np.float64), np.asarray(distinct, np.float64))
    if not (np.isfinite(rows).all() and np.isfinite(touched).all() and (rows >= 0).all() and (touched >= 0).all()):
        raise CostError("routed rows and distinct experts must be finite and not negative")
    return counts(shape, rows, touched, bits)


def _expert_mlp(shape: MoEShape, rows: FloatArray, touched: FloatArray, bits: float) -> Work:
    width = 2.0 * shape.hidden_size + 4.0 * shape.inter_size  # in, out; gate, up and the product, written and read
    return Work(
        distinct_experts=touched,
        weight_bytes=touched * shape.expert_bytes(bits),
        row_bytes=rows * width * _activation_bytes(bits),
        rows=rows,
        flops=rows * shape.expert_flops_per_row(),
        depth=np.full_like(rows, shape.hidden_size + shape.inter_size),
    )


def _dispatch_combine(shape: MoEShape, rows: FloatArray, touched: FloatArray, bits: float) -> Work:
    zero, row_bytes = np.zeros_like(rows), rows * shape.hidden_size * _activation_bytes(bits)
    return Work(
        distinct_experts=zero,
        weight_bytes=zero,
        row_bytes=2.0 * row_bytes * (1.0 + 1.0 / shape.top_k),
        rows=rows,
        flops=2.0 * rows * shape.hidden_size,
        depth=zero,
    )


def _router_topk(shape: MoEShape, rows: FloatArray, touched: FloatArray, bits: float) -> Work:
    zero, scores = np.zeros_like(rows), rows / shape.top_k * shape.num_experts
    return Work(
        distinct_experts=zero,
        weight_bytes=zero,
        row_bytes=scores * _activation_bytes(bits) + 12.0 * rows,
        rows=rows,
        flops=5.0 * scores,
        depth=zero,
    )


def _activation_bytes(bits: float) -> float:
    return max(bits, 16.0) / 8.0


OPERATIONS: Mapping[str, Callable[[MoEShape, FloatArray, FloatArray, float], Work]] = {
    "expert_mlp": _expert_mlp,
    "dispatch_combine": _dispatch_combine,
    "router_topk": _router_topk,
}
