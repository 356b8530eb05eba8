"""What an operation asks of the hardware: bytes, operations, experts touched. B cases.

What the sizes (D, I, E, k) and rows R of a case mean:

| operation | D | I | E, k | R |
|---|---|---|---|---|
| expert_mlp, linear_fc1, activation, linear_fc2, dequant_unpack_op, dispatch, combine, dispatch_combine, router_topk |
| | model width | expert width | experts, experts per token | tokens x k |
| router_gate, ttt_step | model width | 1 | experts, 1 | tokens |
| gemm (m, n, k) | k | n | 1, 1 | m |
| copy, elementwise, norm | columns | 1 | 1, 1 | rows |
| attention_decode | query heads x head size | key heads x head size | 1, 1 | sequences, `context` positions each |
| ttha_adapter_forward, ttha_update | features | hidden units | experts, 1 | layers x experts |
"""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thermoe.cost.cases import Cases
from thermoe.cost.loads import even_loads
from thermoe.errors import CostError
from thermoe.types import NAMED_SHAPES, FloatArray, MoEShape

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_MOST = 2.0**60  # of a size or a count: beyond, products of them overflow


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Work of one execution, one entry per case (B,).

    Attributes:
        distinct_experts: Experts whose weights are read; 0 for operations without weights.
        weight_bytes: Bytes of those weights, or of the cache of keys and values [byte].
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
        return np.atleast_2d(np.array(columns).T)


def work_from_table(table: FloatArray) -> Work:
    """Inverse of `Work.table`."""
    return Work(**dict(zip(Work.__slots__, table.T, strict=True)))


def expected_distinct_experts(num_experts: int, top_k: int, num_tokens: "ArrayLike") -> FloatArray:
    """Experts that tokens touch when each picks `top_k` at random: E (1 - (1 - k/E)^T)."""
    missed = (1.0 - top_k / num_experts) ** np.asarray(num_tokens, dtype=np.float64)
    return np.asarray(num_experts * (1.0 - missed), dtype=np.float64)


def check_shape(shape: object) -> None:
    """Refuse what is no shape of a layer, such as the name of one.

    Raises:
        CostError: It is none.
    """
    if isinstance(shape, MoEShape):
        return
    known = f", such as NAMED_SHAPES[{shape!r}]" if isinstance(shape, str) and shape in NAMED_SHAPES else ""
    known = known or f"; NAMED_SHAPES has {', '.join(NAMED_SHAPES)}"
    raise CostError(f"shape = {reprlib.repr(shape)}: needs a MoEShape of thermoe.types{known}")


def cases_of(
    op: str,
    shape: MoEShape,
    routed_rows: "ArrayLike",
    distinct: "ArrayLike",
    *,
    impl: str = "",
    dtype: str = "bfloat16",
    skew: "ArrayLike" = 1.0,
    context: "ArrayLike" = 1.0,
) -> Cases:
    """Cases of one layer under loads that broadcast to (B,).

    Args:
        op: One of `OPERATIONS`.
        shape: Sizes of the layer.
        routed_rows: Token-expert pairs.
        distinct: Distinct experts touched.
        impl, dtype: Implementation and format of the weights.
        skew: Load of the fullest expert over the mean.
        context: Positions in the cache of keys and values.

    Raises:
        CostError: An unknown operation, no shape, sizes below 1, more experts per token than experts, or counts that
            are negative or beyond all reason.
    """
    if op not in OPERATIONS:
        raise CostError(f"no physics is known for operation {op}: choose from {', '.join(OPERATIONS)}")
    check_shape(shape)
    sizes = (shape.hidden_size, shape.inter_size, shape.num_experts, shape.top_k)
    if not all(1 <= size <= _MOST for size in sizes) or shape.top_k > shape.num_experts:
        raise CostError(f"D, I, E, k = {sizes}: need sizes of at least 1, and no more experts per token than experts")
    columns = [np.atleast_1d(np.asarray(v, np.float64)) for v in (routed_rows, distinct, skew, context)]
    if any(c.shape != columns[0].shape for c in columns):
        try:
            columns = list(np.broadcast_arrays(*columns))
        except ValueError as err:
            shapes = ", ".join(str(c.shape) for c in columns[:2])
            raise CostError(f"routed rows and distinct experts of shapes {shapes}: needs as many of each") from err
    rows, touched, fullest, positions = columns
    for counts in (rows, touched, fullest):
        fine = (counts >= 0) & (counts <= _MOST)
        if not fine.all():
            raise CostError(
                f"got {counts[~fine][0]:g}: routed rows and distinct experts must be finite and not negative, "
                f"{_MOST:g} at most"
            )
    if not ((positions >= 1) & (positions <= _MOST)).all():
        raise CostError(f"context of {positions.min():g}: needs 1 position or more, {_MOST:g} at most")
    ones = np.ones_like(rows)
    return Cases(
        op=op,
        impl=[impl] * len(rows),
        dtype=[dtype] * len(rows),
        hidden_size=shape.hidden_size * ones,
        inter_size=shape.inter_size * ones,
        num_experts=shape.num_experts * ones,
        top_k=shape.top_k * ones,
        tokens=np.maximum(rows / shape.top_k, 1e-2),
        loads=even_loads(rows, touched, fullest),
        context=positions,
        ranks=ones,
        splits=ones,
        skew=np.zeros_like(rows),
    )


def work_of(op: str, shape: MoEShape, routed_rows: "ArrayLike", distinct: "ArrayLike", bits: float) -> Work:
    """Work of one layer's operation, loads that broadcast to (B,); errors as those of `cases_of`."""
    cases = cases_of(op, shape, routed_rows, distinct)
    rows, touched = np.broadcast_arrays(np.asarray(routed_rows, np.float64), np.asarray(distinct, np.float64))
    return OPERATIONS[op](cases, np.atleast_1d(rows), np.atleast_1d(touched), np.full(len(cases), float(bits)))


def work_of_cases(cases: Cases) -> Work:
    """Work of cases of one operation."""
    return OPERATIONS[cases.op](cases, cases.loads.rows, cases.loads.distinct, cases.bits)


def _experts(matrices: float, widths: Callable[[Cases], FloatArray], depth: Callable[[Cases], FloatArray]) -> "Counts":
    """A product over expert weights: how many D x I matrices, numbers of a row in and out, length of the sums."""

    def count(c: Cases, rows: FloatArray, touched: FloatArray, bits: FloatArray) -> Work:
        size = matrices * c.hidden_size * c.inter_size
        return Work(
            distinct_experts=touched,
            weight_bytes=touched * size * bits / 8.0,
            row_bytes=rows * widths(c) * _element_bytes(bits),
            rows=rows,
            flops=2.0 * rows * size,
            depth=depth(c) * np.ones_like(rows),
        )

    return count


def _rowwise(widths: Callable[[Cases], FloatArray], flops: Callable[[Cases], FloatArray]) -> "Counts":
    """No weights: numbers that a row moves, and operations on it."""

    def count(c: Cases, rows: FloatArray, touched: FloatArray, bits: FloatArray) -> Work:
        zero = np.zeros_like(rows)
        return Work(
            distinct_experts=zero,
            weight_bytes=zero,
            row_bytes=rows * widths(c) * _element_bytes(bits),
            rows=rows,
            flops=rows * flops(c),
            depth=zero,
        )

    return count


def _dense(columns: Callable[[Cases], FloatArray], passes: float = 1.0) -> "Counts":
    """A product with one D x columns matrix, as often as there are passes over it."""

    def count(c: Cases, rows: FloatArray, touched: FloatArray, bits: FloatArray) -> Work:
        size = c.hidden_size * columns(c)
        return Work(
            distinct_experts=np.ones_like(rows),
            weight_bytes=passes * size * bits / 8.0,
            row_bytes=passes * rows * (c.hidden_size + columns(c)) * _element_bytes(bits),
            rows=rows,
            flops=2.0 * passes * rows * size,
            depth=c.hidden_size * np.ones_like(rows),
        )

    return count


def _router_topk(c: Cases, rows: FloatArray, touched: FloatArray, bits: FloatArray) -> Work:
    zero, scores = np.zeros_like(rows), rows / c.top_k * c.num_experts
    row_bytes = scores * _element_bytes(bits) + 12.0 * rows
    return Work(
        distinct_experts=zero, weight_bytes=zero, row_bytes=row_bytes, rows=rows, flops=5.0 * scores, depth=zero
    )


def _dequantise(c: Cases, rows: FloatArray, touched: FloatArray, bits: FloatArray) -> Work:
    numbers = touched * 3.0 * c.hidden_size * c.inter_size
    return Work(
        distinct_experts=touched,
        weight_bytes=numbers * bits / 8.0,
        row_bytes=2.0 * numbers,
        rows=rows,
        flops=2.0 * numbers,
        depth=np.zeros_like(rows),
    )


def _attention(c: Cases, rows: FloatArray, touched: FloatArray, bits: FloatArray) -> Work:
    element = _element_bytes(bits)
    return Work(
        distinct_experts=np.zeros_like(rows),
        weight_bytes=rows * c.context * 2.0 * c.inter_size * element,
        row_bytes=2.0 * rows * c.hidden_size * element,
        rows=rows,
        flops=4.0 * rows * c.hidden_size * c.context,
        depth=c.context * np.ones_like(rows),
    )


def _element_bytes(bits: FloatArray) -> FloatArray:
    """Activations have 16 bits at least."""
    return np.maximum(bits, 16.0) / 8.0


Counts = Callable[[Cases, FloatArray, FloatArray, FloatArray], Work]

OPERATIONS: Mapping[str, Counts] = {
    "expert_mlp": _experts(
        3.0, lambda c: 2.0 * c.hidden_size + 4.0 * c.inter_size, lambda c: c.hidden_size + c.inter_size
    ),
    "linear_fc1": _experts(2.0, lambda c: c.hidden_size + 2.0 * c.inter_size, lambda c: c.hidden_size),
    "activation": _rowwise(lambda c: 3.0 * c.inter_size, lambda c: 5.0 * c.inter_size),
    "linear_fc2": _experts(1.0, lambda c: c.hidden_size + c.inter_size, lambda c: c.inter_size),
    "dequant_unpack_op": _dequantise,
    "dispatch": _rowwise(lambda c: c.hidden_size * (1.0 + 1.0 / c.top_k), lambda c: 0.0 * c.hidden_size),
    "combine": _rowwise(lambda c: c.hidden_size * (1.0 + 1.0 / c.top_k), lambda c: 2.0 * c.hidden_size),
    "dispatch_combine": _rowwise(lambda c: 2.0 * c.hidden_size * (1.0 + 1.0 / c.top_k), lambda c: 2.0 * c.hidden_size),
    "router_gate": _dense(lambda c: c.num_experts),
    "router_topk": _router_topk,
    "gemm": _dense(lambda c: c.inter_size),
    "copy": _rowwise(lambda c: 2.0 * c.hidden_size, lambda c: 0.0 * c.hidden_size),
    "elementwise": _rowwise(lambda c: 3.0 * c.hidden_size, lambda c: c.hidden_size),
    "norm": _rowwise(lambda c: 2.0 * c.hidden_size, lambda c: 4.0 * c.hidden_size),
    "attention_decode": _attention,
    "ttha_adapter_forward": _dense(lambda c: c.inter_size),
    "ttha_update": _dense(lambda c: c.inter_size, passes=3.0),
    "ttt_step": _dense(lambda c: c.num_experts, passes=2.0),
}
