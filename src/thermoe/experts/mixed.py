"""Experts of several formats in one layer."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Self

import torch
from torch import nn

from thermoe.errors import ConfigError
from thermoe.experts.quantized import Fp8Expert, QuantizedExpert
from thermoe.experts.simple import ExpertKind, SimpleExpert
from thermoe.format_names import format_name


class ExpertFormat(StrEnum):
    """How one expert's weights are held."""

    DENSE = "dense"
    FP8 = "fp8"
    FP8_BLOCK = "fp8_block"
    INT8 = "int8"
    INT4 = "int4"
    INT3 = "int3"
    INT2 = "int2"

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        """Other names of the same formats (`thermoe.format_names`)."""
        name = format_name(value) if isinstance(value, str) else value
        return next((member for member in cls if member.value == name), None)

    @property
    def bits(self) -> int:
        """Bits of a weight, scales not counted; dense weights count as bfloat16."""
        return _BITS.get(self, 16 if self is ExpertFormat.DENSE else 8)


_BITS = {ExpertFormat.INT8: 8, ExpertFormat.INT4: 4, ExpertFormat.INT3: 3, ExpertFormat.INT2: 2}


def compressed(expert: SimpleExpert, held_as: ExpertFormat | str, *, group_size: int = 128) -> nn.Module:
    """The expert in another format; itself if that is dense.

    Raises:
        ConfigError: an unknown format.
    """
    _check_formats([held_as])
    held_as = ExpertFormat(held_as)
    if held_as is ExpertFormat.DENSE:
        return expert
    if held_as in _BITS:
        return QuantizedExpert.from_expert(expert, bits=_BITS[held_as], group_size=group_size)
    return Fp8Expert.from_expert(expert, blocks=held_as is ExpertFormat.FP8_BLOCK)


def make_experts(
    d_model: int,
    inter_size: int,
    formats: Sequence[ExpertFormat | str],
    *,
    kind: ExpertKind = ExpertKind.SWIGLU,
    group_size: int = 128,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> nn.ModuleList:
    """One expert for each entry of `formats`, all with `forward`, `num_bytes`, `flops_per_row`, `reset_parameters`.

    Args:
        d_model, inter_size, kind: As for `SimpleExpert`.
        formats: How each expert is held.
        group_size: Of the integer formats.
        device: Of the weights.
        dtype: Of dense weights.
        generator: What the weights are drawn from, expert by expert; on the CPU.

    Raises:
        ConfigError: no expert, an unknown format or a size that is none.
    """
    if not formats:
        raise ConfigError("a layer without experts: give a format for at least one")
    _check_formats(formats)
    experts = nn.ModuleList()
    for held_as in formats:
        expert = SimpleExpert(d_model, inter_size, kind=kind, device=device, dtype=dtype)
        if generator is not None:
            expert.reset_parameters(generator)
        experts.append(compressed(expert, held_as, group_size=group_size))
    return experts


def _check_formats(formats: Sequence[ExpertFormat | str]) -> None:
    unknown = sorted({format_name(str(f)) for f in formats} - set(ExpertFormat))
    if unknown:
        raise ConfigError(f"expert format {', '.join(unknown)}: choose from {', '.join(ExpertFormat)}")
