"""What is to be measured, and how expert loads are drawn for it. No torch."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from thermoe.errors import ConfigError
from thermoe.format_names import format_name
from thermoe.types import FloatArray, IntArray

WEIGHT_BITS: dict[str, float] = {
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "fp8": 8,
    "int8": 8,
    "int4": 4,
    "int2": 2,
    "bank8": 8,
    "bank4": 4,
    "bank2": 2,
}
"""Bits that one read of a weight takes, by `Case.dtype`; a bank holds 8 and reads fewer."""

LOADS = ("random", "balanced", "zipf")
GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One operation on one shape under one load.

    What the sizes mean for operations that are no expert layer stands in `thermoe.profiling.operations`.

    Attributes:
        op, impl: Names in `thermoe.profiling.operations.OPERATIONS`.
        hidden_size, inter_size, num_experts, top_k: Sizes D, I, E, k.
        routed_rows: Token-expert pairs; tokens are `routed_rows / top_k`, rounded up.
        distinct_experts: Experts that get at least one row.
        dtype: Format of the weights; activations are bfloat16 unless this is float32 or float16.
        load: How rows beyond the first of each touched expert fall: uniformly at random, evenly, or by Zipf's law.
        context: Positions in the cache of keys and values; 1 where there is none.
        energy: Whether an energy window is wanted, beside the latency.
    """

    op: str
    impl: str
    hidden_size: int
    inter_size: int
    num_experts: int
    top_k: int
    routed_rows: int
    distinct_experts: int
    dtype: str = "bfloat16"
    load: str = "random"
    context: int = 1
    energy: bool = True

    def __post_init__(self) -> None:
        for name in ("hidden_size", "inter_size", "num_experts", "top_k", "routed_rows", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} = {value!r}: needs a whole number of at least 1")
        if not 1 <= self.distinct_experts <= min(self.num_experts, self.routed_rows):
            raise ConfigError(
                f"{self}: distinct_experts must lie between 1 and the {min(self.num_experts, self.routed_rows)} "
                "that experts and routed rows allow"
            )
        object.__setattr__(self, "dtype", format_name(self.dtype))
        if self.dtype not in WEIGHT_BITS:
            raise ConfigError(f"dtype {self.dtype}: choose from {', '.join(WEIGHT_BITS)}")
        if self.load not in LOADS:
            raise ConfigError(f"load {self.load}: choose from {', '.join(LOADS)}")

    @property
    def tokens(self) -> int:
        """Tokens in the batch."""
        return -(-self.routed_rows // self.top_k)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(D, I, E, k)."""
        return self.hidden_size, self.inter_size, self.num_experts, self.top_k

    @property
    def activation_dtype(self) -> str:
        """Type of activations."""
        return self.dtype if self.dtype in ("float32", "float16") else "bfloat16"

    @property
    def element_bytes(self) -> int:
        """Bytes of one activation."""
        return 4 if self.dtype == "float32" else 2

    @property
    def bits(self) -> float:
        """Bits that one read of a weight takes."""
        return WEIGHT_BITS[self.dtype]

    @property
    def group_size(self) -> int | None:
        """Columns that share a scale; None for formats without groups.

        128 wherever rows of both matrices then have an even number of groups, which the decode kernel needed once:
        recorded samples and their bytes are of these groups.
        """
        if not self.dtype.startswith(("int", "bank")):
            return None
        sizes = (self.hidden_size, self.inter_size)
        return next((g for g in GROUP_SIZES if all(-(-size // g) % 2 == 0 for size in sizes)), GROUP_SIZES[0])

    @property
    def expert_bytes(self) -> float:
        """Bytes that reading one SwiGLU expert takes, scales included."""
        D, I = self.hidden_size, self.inter_size  # noqa: E741
        return 3.0 * D * I * self.bits / 8.0 + self.scale_bytes(2 * I, D) + self.scale_bytes(D, I)

    def scale_bytes(self, rows: int, columns: int) -> float:
        """Bytes of the scales of one matrix of one expert."""
        if self.dtype == "fp8":
            return 4.0 * rows
        return 0.0 if self.group_size is None else 2.0 * rows * -(-columns // self.group_size)

    @property
    def key(self) -> tuple[str, str, str, int, int, int, int, int, int, int, str, int]:
        """What makes two cases the same, as `CostRow.case_key` has it."""
        counts = (self.tokens, self.routed_rows, self.distinct_experts)
        return (self.op, self.impl, self.dtype, *self.sizes, *counts, self.load, self.context)

    def as_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `as_dict`."""
        return cls(**values)

    def __str__(self) -> str:
        sizes = f"D{self.hidden_size} I{self.inter_size} E{self.num_experts} k{self.top_k}"
        more = f", {self.load} load" if self.load != "random" else ""
        more += f", context {self.context}" if self.context > 1 else ""
        rows = f"{self.routed_rows} rows on {self.distinct_experts} experts"
        return f"{self.op}/{self.impl} {self.dtype} {sizes}, {rows}{more}"


def draw_expert_ids(case: Case, seed: int, chosen: IntArray | None = None) -> IntArray:
    """Expert of every routed row, (R,): exactly `distinct_experts` appear.

    The rows are laid out as (token, slot) with one expert's rows spread over as many tokens as there are, as a
    router would; no expert gets more rows than there are tokens unless too few experts are touched for that.

    Args:
        case: What is wanted.
        seed: Of the draw.
        chosen: The experts to touch, (A,); drawn at random if None.
    """
    rng = np.random.default_rng(seed)
    if chosen is None:
        chosen = rng.permutation(case.num_experts)[: case.distinct_experts]
    by_expert = np.repeat(chosen, _loads(case, rng))
    order = np.argsort(by_expert, kind="stable")
    tokens, slots = case.tokens, case.top_k
    padded = np.full(tokens * slots, -1)
    padded[: by_expert.size] = by_expert[order]
    ids: IntArray = padded.reshape(slots, tokens).T.ravel()
    return ids[ids >= 0].astype(np.int64)


def load_skew(expert_ids: IntArray) -> float:
    """Load of the fullest expert over the mean load of those touched."""
    _, loads = np.unique(expert_ids, return_counts=True)
    return float(loads.max() / loads.mean())


def _loads(case: Case, rng: np.random.Generator) -> IntArray:
    """Rows of each touched expert, (A,), their sum `routed_rows`."""
    touched, spare = case.distinct_experts, case.routed_rows - case.distinct_experts
    if case.load == "balanced":
        more = np.full(touched, spare // touched) + (np.arange(touched) < spare % touched)
    else:
        weight: FloatArray = 1.0 / np.arange(1, touched + 1) if case.load == "zipf" else np.ones(touched)
        more = rng.multinomial(spare, weight / weight.sum())
    loads = 1 + more
    if touched >= case.top_k:
        loads = _capped(loads, case.tokens)
    return loads.astype(np.int64)


def _capped(loads: IntArray, most: int) -> IntArray:
    """The same sum with no entry above `most`: what is too much goes to those with room, the fullest first."""
    excess = int(np.maximum(loads - most, 0).sum())
    capped: IntArray = np.minimum(loads, most)
    for place in np.argsort(-capped, kind="stable"):
        taken = min(excess, most - int(capped[place]))
        capped[place] += taken
        excess -= taken
    return capped
