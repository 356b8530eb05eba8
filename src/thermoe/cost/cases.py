"""Cases to predict or to learn from, as columns: the same whether they came from a database, a table or a question.

Shapes: B cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from thermoe.cost.loads import Loads
from thermoe.types import FloatArray

DTYPE_BITS: dict[str, float] = {
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "fp8": 8,
    "fp8_block": 8,
    "int8": 8,
    "bank8": 8,
    "int4": 4,
    "int4_wo": 4,
    "bank4": 4,
    "int2": 2,
    "bank2": 2,
}
"""Bits that one read of a weight takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cases:
    """One operation under many sizes and loads.

    What D, I, E and k mean for operations that are no expert layer stands in `thermoe.cost.work`.

    Attributes:
        op: Operation.
        impl, dtype: Implementation, format of the weights (B,).
        hidden_size, inter_size, num_experts: On one GPU (B,).
        top_k, tokens: Of the whole layer (B,).
        loads: Rows and experts touched on this GPU.
        context: Positions in the cache of keys and values (B,).
        ranks, splits: GPUs that share the experts, and that share each expert's width (B,).
        skew: Exponent of the power law of loads, 0 where they are even or not known (B,).
    """

    op: str
    impl: Sequence[str]
    dtype: Sequence[str]
    hidden_size: FloatArray
    inter_size: FloatArray
    num_experts: FloatArray
    top_k: FloatArray
    tokens: FloatArray
    loads: Loads
    context: FloatArray
    ranks: FloatArray
    splits: FloatArray
    skew: FloatArray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def bits(self) -> FloatArray:
        """Bits of a weight (B,)."""
        return np.array([DTYPE_BITS[d] for d in self.dtype], dtype=np.float64)

    def sizes(self) -> FloatArray:
        """What makes two cases the same shape, whatever their load and format (B, 6)."""
        columns = (self.hidden_size, self.inter_size, self.num_experts, self.top_k, self.ranks, self.splits)
        return np.stack(columns, axis=1)

    def models(self) -> FloatArray:
        """Sizes of the whole layer, however it is shared between GPUs (B, 4)."""
        whole = (self.hidden_size, self.inter_size * self.splits, self.num_experts * self.ranks, self.top_k)
        return np.stack(whole, axis=1)

    def take(self, chosen: Any) -> Self:
        """The cases of an index or a mask."""
        index = np.arange(len(self))[chosen]
        values: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("impl", "dtype"):
                value = [value[i] for i in index]
            elif f.name == "loads":
                value = value.take(index)
            elif f.name != "op":
                value = value[index]
            values[f.name] = value
        return type(self)(**values)
