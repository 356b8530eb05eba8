"""Rows and their norm in float64."""

import torch

CASES = [(1, 1), (3, 7), (5, 384), (2, 1000)]


def drawn(rows, width, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(rows + width)
    x, added = (torch.randn(rows, width, generator=generator).to(dtype).to(device) for _ in range(2))
    return x, added, (torch.rand(width, generator=generator) + 0.5).to(dtype).to(device)


def in_float64(x, weight, eps):
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
