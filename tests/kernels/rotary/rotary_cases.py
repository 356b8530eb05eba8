"""Heads as the attention of a model hands them on, and the rotation by complex numbers.

Shapes: B sequences, H query heads, G key heads, S positions, W width of a head.
"""

import torch
from torch import Tensor

CASES = [(1, 1, 1, 1, 2), (3, 4, 2, 1, 8), (2, 3, 1, 5, 6), (7, 2, 2, 1, 96)]


def drawn(batch: int, num_q: int, num_k: int, positions: int, width: int, shared: bool) -> tuple[Tensor, ...]:
    """Queries and keys as transposed views, cosines and sines of angles that differ between the halves."""
    generator = torch.Generator().manual_seed(batch + 10 * width)
    q = torch.randn(batch, positions, num_q, width, generator=generator).transpose(1, 2)
    k = torch.randn(batch, positions, num_k, width, generator=generator).transpose(1, 2)
    angle = torch.rand(1 if shared else batch, positions, width // 2, generator=generator) * 6.0
    angle = torch.cat([angle, angle], dim=-1)
    return q, k, angle.cos(), angle.sin()


def by_complex_numbers(x_BHSW: Tensor, cos_BSW: Tensor, sin_BSW: Tensor) -> Tensor:
    """(B, H, S, W) float64: element d and element d + W / 2 are the parts of a number that is turned by an angle."""
    half = x_BHSW.shape[-1] // 2
    number = torch.complex(x_BHSW[..., :half].double(), x_BHSW[..., half:].double())
    turn = torch.complex(cos_BSW[..., :half].double(), sin_BSW[..., :half].double()).unsqueeze(1)
    turned = number * turn
    return torch.cat([turned.real, turned.imag], dim=-1)
