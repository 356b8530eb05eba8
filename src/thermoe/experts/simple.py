"""A plain expert: a SwiGLU or ReLU MLP in two matrices.

Shapes: N routed rows, D model width, I expert width.
"""

from enum import StrEnum

import torch
from torch import Tensor, nn

from thermoe.errors import ConfigError


class ExpertKind(StrEnum):
    """What lies between the two matrices."""

    SWIGLU = "swiglu"
    RELU = "relu"


def checked_kind(kind: ExpertKind | str, d_model: int, inter_size: int) -> ExpertKind:
    """The kind; refuses unknown ones and sizes that are none."""
    if not (isinstance(d_model, int) and isinstance(inter_size, int) and d_model > 0 and inter_size > 0):
        raise ConfigError(f"expert of width {inter_size} on d_model {d_model}: both need to be 1 or more")
    if kind not in set(ExpertKind):
        raise ConfigError(f"expert of kind {kind}: choose from {', '.join(ExpertKind)}")
    return ExpertKind(kind)


def check_rows(x_ND: Tensor, d_model: int) -> None:
    """Refuse rows of another width, or of whole numbers."""
    if not x_ND.ndim or x_ND.shape[-1] != d_model or not x_ND.is_floating_point():
        raise ConfigError(
            f"rows of shape {tuple(x_ND.shape)} and {x_ND.dtype}: this expert needs (rows, {d_model}) floating point"
        )


class SimpleExpert(nn.Module):
    """`fc2(silu(gate) * up)` for SwiGLU, where `fc1` holds gate and then up; `fc2(relu(fc1))` for ReLU.

    Args:
        d_model: Model width (D).
        inter_size: Expert width (I).
        kind: SwiGLU or ReLU.
        device, dtype: Of the weights.

    Attributes:
        fc1: (2 I, D) for SwiGLU, gate first; (I, D) for ReLU.
        fc2: (D, I).

    Raises:
        ConfigError: a size is not positive, or the kind is unknown.
    """

    def __init__(
        self,
        d_model: int,
        inter_size: int,
        *,
        kind: ExpertKind = ExpertKind.SWIGLU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kind = checked_kind(kind, d_model, inter_size)
        rows = 2 * inter_size if self.kind is ExpertKind.SWIGLU else inter_size
        self.fc1 = nn.Parameter(torch.empty(rows, d_model, device=device, dtype=dtype))
        self.fc2 = nn.Parameter(torch.empty(d_model, inter_size, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws new weights, on the CPU in float32 whatever the device, so that a seed means one set of weights."""
        for weight in (self.fc1, self.fc2):
            drawn = torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5
            weight.copy_(drawn)

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) to (N, D), in the dtype of the weights."""
        check_rows(x_ND, self.fc2.shape[0])
        return nn.functional.linear(self._activate(nn.functional.linear(x_ND, self.fc1)), self.fc2)

    def _activate(self, hidden: Tensor) -> Tensor:
        if self.kind is ExpertKind.RELU:
            return nn.functional.relu(hidden)
        gate, up = hidden.chunk(2, dim=-1)
        return nn.functional.silu(gate) * up

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights: what loading this expert moves [byte]."""
        return sum(weight.numel() * weight.element_size() for weight in (self.fc1, self.fc2))

    @property
    def flops_per_row(self) -> int:
        """Floating-point operations of the two products for one row."""
        return 2 * (self.fc1.numel() + self.fc2.numel())
