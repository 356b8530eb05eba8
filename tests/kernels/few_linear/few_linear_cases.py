"""Rows and matrices, and their products in float64."""

import torch

CASES = [(1, 8, (3,)), (3, 100, (17, 5)), (16, 384, (96, 32, 33)), (33, 64, (40, 0, 7)), (64, 257, (16, 48))]


def drawn(rows, columns, outputs, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(rows + columns)
    x = torch.randn(rows, columns, generator=generator).to(dtype).to(device)
    weights = [torch.randn(n, columns, generator=generator).to(dtype).to(device) for n in outputs]
    biases = [
        torch.randn(n, generator=generator).to(dtype).to(device) if i != 1 else None for i, n in enumerate(outputs)
    ]
    return x, weights, biases


def in_float64(x, weights, biases):
    parts = [
        x.double() @ w.double().T + (0.0 if b is None else b.double()) for w, b in zip(weights, biases, strict=True)
    ]
    return torch.cat(parts, dim=1)
