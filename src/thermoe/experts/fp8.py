"""FP8 (e4m3) weights with one scale for each row, or for each block of 128 x 128.

Shapes: E experts, N rows, C columns.
"""

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.expert_mlp import Fp8Matrices
from thermoe.kernels.expert_mlp.weights import CHUNK

_LARGEST = 448.0  # of e4m3


@torch.no_grad()
def quantize_fp8(weight_ENC: Tensor, *, blocks: bool = False) -> Fp8Matrices:
    """Codes rounded to nearest; the largest weight of each row or block maps to the largest code.

    Args:
        weight_ENC: (E, N, C) of any floating-point dtype.
        blocks: Scales for blocks of 128 x 128 instead of rows.

    Raises:
        ConfigError: another shape or dtype, NaN or infinite weights.
    """
    if weight_ENC.ndim != 3 or not weight_ENC.is_floating_point() or 0 in weight_ENC.shape:
        raise ConfigError(
            f"weights of shape {tuple(weight_ENC.shape)} and {weight_ENC.dtype}: "
            "give (experts, rows, columns) of floating-point numbers"
        )
    weight = weight_ENC.float()
    if not bool(weight.isfinite().all()):
        raise ConfigError("weights hold NaN or infinity: FP8 needs finite weights, repair the checkpoint")
    largest = _largest_of_blocks(weight) if blocks else weight.abs().amax(dim=-1)
    scale = torch.where(largest > 0, largest / _LARGEST, 1.0)
    code = (weight / _spread(scale, weight.shape)).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return Fp8Matrices(code_ENC=code, scale=scale.contiguous())


def _largest_of_blocks(weight: Tensor) -> Tensor:
    _, rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.abs(), (0, -columns % CHUNK, 0, -rows % CHUNK))
    largest: Tensor = padded.unflatten(1, (-1, CHUNK)).unflatten(3, (-1, CHUNK)).amax(dim=(2, 4))
    return largest


def _spread(scale: Tensor, shape: torch.Size) -> Tensor:
    if scale.ndim == 2:
        return scale.unsqueeze(-1)
    by_row = scale.repeat_interleave(CHUNK, dim=1)[:, : shape[1]]
    return by_row.repeat_interleave(CHUNK, dim=2)[..., : shape[2]]
