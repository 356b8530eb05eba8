"""What is to be measured, and how expert loads are drawn for it. No torch."""

from dataclasses import dataclass

import numpy as np

from thermoe.errors import ConfigError
from thermoe.types import IntArray

BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One operation on one shape under one load.

    Attributes:
        op, impl: Names in `thermoe.profiling.operations.OPERATIONS`.
        hidden_size, inter_size, num_experts, top_k: Sizes D, I, E, k.
        routed_rows: Token-expert pairs; tokens are `routed_rows / top_k`, rounded up.
        distinct_experts: Experts that get at least one row.
        dtype: Type of weights and activations.
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
    energy: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.distinct_experts <= min(self.num_experts, self.routed_rows):
            raise ConfigError(
                f"{self}: distinct_experts must lie between 1 and the {min(self.num_experts, self.routed_rows)} "
                "that experts and routed rows allow"
            )
        if self.dtype not in BYTES_PER_ELEMENT:
            raise ConfigError(f"dtype {self.dtype}: choose from {', '.join(BYTES_PER_ELEMENT)}")

    @property
    def tokens(self) -> int:
        """Tokens in the batch."""
        return -(-self.routed_rows // self.top_k)

    @property
    def element_bytes(self) -> int:
        """Bytes of one number."""
        return BYTES_PER_ELEMENT[self.dtype]

    @property
    def expert_bytes(self) -> int:
        """Bytes of one SwiGLU expert."""
        return 3 * self.hidden_size * self.inter_size * self.element_bytes

    def __str__(self) -> str:
        sizes = f"D{self.hidden_size} I{self.inter_size} E{self.num_experts} k{self.top_k}"
        return f"{self.op}/{self.impl} {self.dtype} {sizes}, {self.routed_rows} rows on {self.distinct_experts} experts"


def draw_expert_ids(case: Case, seed: int) -> IntArray:
    """Expert of every routed row, (R,): exactly `distinct_experts` appear, the rest of the rows fall at random.

    The rows are laid out as (token, slot) with one expert's rows spread over as many tokens as
    there are, as a router would.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(case.num_experts)[: case.distinct_experts]
    rest = rng.choice(chosen, case.routed_rows - case.distinct_experts)
    by_expert = np.sort(np.concatenate([chosen, rest]))
    tokens, slots = case.tokens, case.top_k
    padded = np.full(tokens * slots, -1)
    padded[: by_expert.size] = by_expert
    ids: IntArray = padded.reshape(slots, tokens).T.ravel()
    return ids[ids >= 0].astype(np.int64)


def load_skew(expert_ids: IntArray) -> float:
    """Load of the fullest expert over the mean load of those touched."""
    _, loads = np.unique(expert_ids, return_counts=True)
    return float(loads.max() / loads.mean())
