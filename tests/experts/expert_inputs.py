"""Weights and inputs with structure, as trained experts have it."""

import torch


def heavy_weights(experts: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Gaussian weights with rows of different size and a few outliers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(experts, rows, columns, generator=generator)
    size = torch.rand(experts, rows, 1, generator=generator) + 0.5
    outlier = torch.rand(weight.shape, generator=generator) < 0.002
    return 0.05 * weight * size * torch.where(outlier, 4.0, 1.0)


def correlated_rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Inputs that a few directions explain, and that do not have mean zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(max(1, width // 8), width, generator=torch.Generator().manual_seed(99))
    hidden = torch.randn(count, mixing.shape[0], generator=generator) + 0.3
    return hidden @ mixing / mixing.shape[0] ** 0.5 + 0.3 * torch.randn(count, width, generator=generator)


def output_error(weight: torch.Tensor, held: torch.Tensor, rows: torch.Tensor) -> float:
    """Squared error of the outputs over their square."""
    exact, got = rows @ weight.transpose(-1, -2), rows @ held.transpose(-1, -2)
    return float((got - exact).square().sum() / exact.square().sum())
