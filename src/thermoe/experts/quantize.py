"""Quantisers: round to nearest with a clipping search, and error compensation where inputs were seen.

Shapes: E experts, N rows, C columns, G groups, P precisions.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.experts.codes import QuantizedMatrix, check_weights, levels
from thermoe.experts.compensation import compensated_codes, descended_codes
from thermoe.experts.rounding import clipped_scales, rounded
from thermoe.experts.scales import gain_corrected, refitted_scales
from thermoe.kernels.expert_mlp.planes import per_column

# What a squared error costs at each precision of a nested bank. Higher ones weigh more, so that int4 and int8 give up
# little for int2: less costs perplexity at 4 and 8 bits, more costs it at 2 (docs/concepts/formats.md).
NESTED_WEIGHT = {2: 1.0, 4: 3.0, 8: 14.0}
DESCENTS = 2
_CPU_ELEMENTS, _GPU_ELEMENTS = 2**22, 2**26  # weights compensated at once: bounds the memory of the search


@torch.no_grad()
def quantize(
    weight_ENC: Tensor,
    bits: int | tuple[int, ...],
    *,
    group_size: int = 128,
    moment_ECC: Tensor | None = None,
    nested_weight: dict[int, float] | None = None,
    descents: int = DESCENTS,
    unbiased: bool = True,
) -> QuantizedMatrix:
    """Quantise the same matrix of all experts.

    Args:
        weight_ENC: (E, N, C) weights of any floating-point dtype.
        bits: 2, 3, 4 or 8; or (2, 4) or (2, 4, 8) for codes whose highest bits are the codes of lower precisions.
        group_size: Columns that share a scale: 32, 64 or a multiple of 128.
        moment_ECC: (E, C, C) second moment of the inputs of each expert, up to a factor per expert. Where given,
            errors are compensated; otherwise each weight is rounded by itself.
        nested_weight: Cost of a squared error by precision, for nested codes.
        descents: Sweeps of coordinate descent after the compensating one.
        unbiased: Whether scales are corrected so that outputs do not shrink.

    Raises:
        ConfigError: weights, moments, bits or groups that cannot be used.
    """
    precisions = (bits,) if isinstance(bits, int) else bits
    check_weights(weight_ENC, precisions, group_size)
    _check_moment(weight_ENC, moment_ECC)
    costs = NESTED_WEIGHT if nested_weight is None else nested_weight
    if not all(0 <= cost < float("inf") for cost in costs.values()) or not any(costs.get(b, 1.0) for b in precisions):
        raise ConfigError(f"costs of errors {costs} for {precisions} bits: give finite ones of 0 or more, not all 0")
    weight_P = tuple(costs.get(b, 1.0) for b in precisions)
    if moment_ECC is None:
        rows = weight_ENC.reshape(1, -1, weight_ENC.shape[-1])
        code, scale = rounded(rows, precisions, group_size, weight_P, unbiased=unbiased)
    else:
        parts = [
            _compensated(weight, moment, precisions, group_size, weight_P, descents, unbiased)
            for weight, moment in _chunks(weight_ENC, moment_ECC)
        ]
        code, scale = torch.cat([code for code, _ in parts]), torch.cat([scale for _, scale in parts], dim=1)
    return QuantizedMatrix(
        code_ENC=code.view(weight_ENC.shape),
        scale_PENG=scale.half().view(len(precisions), *weight_ENC.shape[:2], -1),
        bits=precisions,
        group_size=group_size,
    )


def _chunks(weight_ENC: Tensor, moment_ECC: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some experts at a time, which bounds the memory of the search."""
    elements = _CPU_ELEMENTS if weight_ENC.device.type == "cpu" else _GPU_ELEMENTS
    per_chunk = max(1, elements // weight_ENC[0].numel())
    for weight, moment in zip(weight_ENC.split(per_chunk), moment_ECC.split(per_chunk), strict=True):
        yield weight.float(), _normalised(moment)


def _compensated(
    weight: Tensor,
    moment: Tensor,
    bits: tuple[int, ...],
    group_size: int,
    weight_P: tuple[float, ...],
    descents: int,
    unbiased: bool,
) -> tuple[Tensor, Tensor]:
    through = weight @ moment
    scale = clipped_scales(weight, moment.diagonal(dim1=1, dim2=2), bits, group_size, weight_P)
    try:
        code = compensated_codes(weight, moment, scale, bits, group_size, weight_P)
    except torch.linalg.LinAlgError as err:  # type: ignore[attr-defined]
        raise ConfigError(
            "moments of the inputs have a direction with a negative square: sum x x' over the inputs"
        ) from err
    scale = refitted_scales(through, moment, code, bits, group_size, scale)
    for _ in range(descents):
        code = descended_codes(weight, moment, scale, code, bits, group_size, weight_P)
        scale = refitted_scales(through, moment, code, bits, group_size, scale)
    if unbiased:
        value = levels(code, per_column(scale, group_size, weight.shape[-1]), bits)
        scale = gain_corrected(weight, through, value, scale)
    return code.contiguous(), scale


def _normalised(moment_ECC: Tensor) -> Tensor:
    """Mean diagonal 1; an expert that never saw an input is treated as if its inputs were white."""
    moment = moment_ECC if moment_ECC.dtype is torch.float64 else moment_ECC.float()
    size = moment.diagonal(dim1=1, dim2=2).double().mean(dim=-1).view(-1, 1, 1).to(moment.dtype)
    white = torch.eye(moment.shape[-1], device=moment.device)
    return torch.where(size > 0, (moment / size.clamp_min(1e-30)).float(), white)


def _check_moment(weight_ENC: Tensor, moment_ECC: Tensor | None) -> None:
    if moment_ECC is None:
        return
    experts, _, columns = weight_ENC.shape
    if tuple(moment_ECC.shape) != (experts, columns, columns) or moment_ECC.device != weight_ENC.device:
        raise ConfigError(
            f"moments of shape {tuple(moment_ECC.shape)} on {moment_ECC.device} for weights of shape "
            f"{tuple(weight_ENC.shape)} on {weight_ENC.device}: need {(experts, columns, columns)} there"
        )
    if moment_ECC.is_complex() or not bool(moment_ECC.isfinite().all()):
        raise ConfigError("moments of the inputs hold NaN, infinity or complex numbers: calibrate on finite inputs")
    if bool((moment_ECC.diagonal(dim1=1, dim2=2) < 0).any()):
        raise ConfigError("moments of the inputs have a negative square: sum x x' over the inputs")
