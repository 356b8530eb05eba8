"""Linear layers side by side in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear


def few_linear_reference(x_TC: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None] = ()) -> Tensor:
    """(T, sum of N_i): one library call for each matrix."""
    each = biases or [None] * len(weights)
    return torch.cat([linear(x_TC, weight, bias) for weight, bias in zip(weights, each, strict=True)], dim=1)
