"""What every workload is: a finite sequence of batches, each reproducible from its index alone.

Shapes: T tokens, D model width, B sequences, S positions.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from torch import Tensor


class TextMode(StrEnum):
    """How a text batch is meant to be run."""

    TEACHER_FORCED = "teacher_forced"  # B sequences in step: each of the S columns is one decode batch
    PREFILL = "prefill"  # B prompts read at once: a column is no batch
    GENERATION = "generation"  # B prompts, continued by `new_tokens` tokens


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class TensorBatch:
    """Synthetic hidden states of one step.

    Attributes:
        index: Place in the workload.
        hidden_states: (T, D) float32, on the CPU; the T tokens share one union of experts.
    """

    index: int
    hidden_states: Tensor


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class TextBatch:
    """B sequences of S positions with fresh context.

    Attributes:
        index: Place in the workload.
        mode: How to run it.
        input_ids: (B, S) int64, on the CPU.
        target_ids: (B, S) int64: the token that follows each input.
        mask: (B, S) bool: positions that hold a real token.
        new_tokens: Tokens to generate after the S given ones; 0 outside generation.
    """

    index: int
    mode: TextMode
    input_ids: Tensor
    target_ids: Tensor
    mask: Tensor
    new_tokens: int = 0


Batch = TensorBatch | TextBatch


class Workload(Protocol):
    """A finite sequence of batches; `batch(i)` is the same whatever was drawn before."""

    def __len__(self) -> int:
        """Number of batches."""
        ...

    def batch(self, index: int) -> Batch:
        """Batch number `index`, from 0."""
        ...
