"""Scales tuned on the whole model: codes stay, the scales of one precision follow the model's own predictions.

Quantisers look at one matrix at a time. What they leave behind at 2 bits is partly common to many matrices, and the
scales of that precision can make up for some of it: other precisions have scales of their own and do not change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from thermoe.errors import ConfigError
from thermoe.experts.codes import QuantizedMatrix, middle, truncated
from thermoe.kernels.expert_mlp.planes import per_column

STEPS, RATE = 100, 1e-2


def tune_scales(
    model: nn.Module,
    matrices: Mapping[str, QuantizedMatrix],
    batches: Sequence[Tensor],
    *,
    bits: int = 2,
    steps: int = STEPS,
    rate: float = RATE,
) -> dict[str, QuantizedMatrix]:
    """Minimise the divergence from the model's own predictions over the scales of one precision, with Adam.

    Args:
        model: Returns an object with `logits`; its weights are the exact ones, and stay as they are.
        matrices: Name of a parameter of the model -> what stands for it.
        batches: (B, S) token ids each, on the model's device; taken in turn.
        bits: Precision whose scales are tuned.
        steps: Updates; the rate falls to 0 over them.
        rate: Of change of the logarithm of a scale.

    Returns:
        The matrices with new scales at that precision.

    Raises:
        ConfigError: a name or shape that the model does not have, no batch, another precision, or steps or a rate that
            cannot be.
    """
    if not isinstance(steps, int) or steps < 1 or not 0.0 < rate <= 1.0:
        raise ConfigError(f"steps = {steps!r}, rate = {rate!r}: needs a step or more, and a rate over 0, 1 at most")
    _check(model, matrices, batches, bits)
    fixed = {name: _Fixed(matrix, bits) for name, matrix in matrices.items()}
    change = {name: torch.zeros_like(f.scale_ENG, requires_grad=True) for name, f in fixed.items()}
    optimiser = torch.optim.Adam(change.values(), lr=rate, betas=(0.9, 0.95))
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * (1 - step / steps)
            weights = {name: f.weights(change[name]) for name, f in fixed.items()}
            loss = divergence(model, weights, batches[step % len(batches)])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
    return {name: f.rescaled(change[name].detach()) for name, f in fixed.items()}


def divergence(model: nn.Module, weights: dict[str, Tensor], ids_BS: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the predictions with other weights from the model's own [nat]."""
    options = {"use_cache": False}
    with torch.no_grad():
        own: Any = model(ids_BS, **options)
        exact = own.logits.float().log_softmax(dim=-1)
    held: Any = torch.func.functional_call(model, weights, (ids_BS,), options)
    got = held.logits.float().log_softmax(dim=-1)
    return nn.functional.kl_div(got, exact, reduction="none", log_target=True).sum(dim=-1).mean()


class _Fixed:
    """Codes and starting scales of one matrix at one precision."""

    def __init__(self, matrix: QuantizedMatrix, bits: int) -> None:
        self._matrix, self._precision = matrix, matrix.bits.index(bits)
        self._centred = truncated(matrix.code_ENC, matrix.bits[-1], bits).float() - middle(bits)
        self.scale_ENG = matrix.scale_PENG[self._precision].float()

    def weights(self, change_ENG: Tensor) -> Tensor:
        scale = self.scale_ENG * change_ENG.exp()
        return self._centred * per_column(scale, self._matrix.group_size, self._matrix.columns)

    def rescaled(self, change_ENG: Tensor) -> QuantizedMatrix:
        scale_PENG = self._matrix.scale_PENG.clone()
        scale_PENG[self._precision] = (self.scale_ENG * change_ENG.exp()).half()
        return replace(self._matrix, scale_PENG=scale_PENG)


def _check(model: nn.Module, matrices: Mapping[str, QuantizedMatrix], batches: Sequence[Tensor], bits: int) -> None:
    if not batches or not matrices:
        raise ConfigError(f"{len(matrices)} matrices and {len(batches)} batches to tune on: give at least one of each")
    parameters = dict(model.named_parameters())
    for name, matrix in matrices.items():
        if bits not in matrix.bits:
            raise ConfigError(
                f"{name} holds {matrix.bits} bits: the scales of {bits} bits cannot be tuned, give its bits="
            )
        if name not in parameters or parameters[name].shape != matrix.code_ENC.shape:
            raise ConfigError(
                f"the model has no parameter {name} of shape {tuple(matrix.code_ENC.shape)}: name the weights that "
                "the codes stand for"
            )
