"""What an operation of the registry is: how it is built, run, checked and counted."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from thermoe.profiling.case import Case
from thermoe.profiling.formats import WeightCache

INPUT_DISTRIBUTION = "normal(0,1); weights normal(0,1/fan_in)"
CHECKED_ROWS = 8


class Workbench(Protocol):
    """Inputs and weights of several steps of an operation, ready to run."""

    skew: float

    def run(self, step: int) -> Tensor:
        """Execute the operation once on one step's data."""

    def rel_error(self) -> float:
        """Error of step 0 against float64 on the same values, relative to their root mean square."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Where and how long a workbench runs.

    Attributes:
        device: Where.
        steps: Steps that follow each other before the first is repeated.
        weights: Expert weights that earlier cases made.
        cache_bytes: What the steps should read together, so that no cache holds it [byte].
        memory_bytes: Most that the copies of one workbench may take [byte].
    """

    device: torch.device
    steps: int
    weights: WeightCache
    cache_bytes: float = 0.0
    memory_bytes: float = 8e9

    def copies(self, copy_bytes: float) -> int:
        """Copies of what a step reads that are needed to outgrow the cache, as far as memory goes."""
        wanted = math.ceil(self.cache_bytes / max(copy_bytes, 1.0))
        return max(1, min(wanted, self.steps, int(self.memory_bytes / max(copy_bytes, 1.0))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One entry of the registry.

    Attributes:
        build: Makes a workbench of a case.
        implementations: Names that `Case.impl` may have.
        dtypes: Names that `Case.dtype` may have.
        flops, bytes_moved: Floating-point operations and least memory traffic [byte] of one execution.
        step_bytes: Bytes that a step reads and that other steps should not find in a cache [byte].
        on_host: It computes on the host whatever the device.
    """

    build: Callable[[Case, Setup], Workbench]
    implementations: tuple[str, ...]
    dtypes: tuple[str, ...]
    flops: Callable[[Case], float]
    bytes_moved: Callable[[Case], float]
    step_bytes: Callable[[Case], float]
    on_host: bool = False


FLOATS = ("bfloat16", "float32", "float16")
PACKED = ("fp8", "int8", "int4", "int2", "bank8", "bank4", "bank2")


def relative_error(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference over that of `want`; infinite where `got` is not finite."""
    error = (got.double() - want).square().mean().sqrt() / want.square().mean().sqrt()
    return float(error) if torch.isfinite(error) else float("inf")


def activation_dtype(case: Case) -> torch.dtype:
    """torch's type of the activations."""
    dtype: torch.dtype = getattr(torch, case.activation_dtype)
    return dtype
