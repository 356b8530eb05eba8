"""Quantised copies of a model's experts, put in and taken out again.

E experts, D model width, I expert width.
"""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from thermoe.errors import ConfigError
from thermoe.experts import ExpertBank, Moments, experts_of, quantize, quantize_fp8
from thermoe.format_names import format_name
from thermoe.integrations.experts import register_experts
from thermoe.integrations.experts_held import (
    QuantisedBlock,
    expert_blocks,
    quantised_experts,
    set_quantised_experts,
)
from thermoe.integrations.hooks import forget_compiled_code
from thermoe.kernels.expert_mlp import DenseMatrices, ExpertWeights, Matrices

_INTEGERS = {"int2": 2, "int4": 4, "int8": 8}
_FP8 = {"fp8": False, "fp8_block": True}
_BANKS = {"bank": 8, "bank8": 8, "bank4": 4, "bank2": 2}
EXPERT_FORMATS = (*_INTEGERS, *_FP8, *_BANKS)
"""What `quantise_experts` makes; a bank holds all of 2, 4 and 8 bits and begins at the one in its name."""


def precision_of(held_as: str) -> float:
    """Precision at which experts of this format are read at first [bit], scales not counted.

    Raises:
        ConfigError: An unknown format.
    """
    return (_INTEGERS | _BANKS).get(_known(held_as), 8)


def _known(held_as: str) -> str:
    """A format by the name that `EXPERT_FORMATS` has."""
    name = format_name(held_as)
    if name not in EXPERT_FORMATS:
        raise ConfigError(f"experts held as {held_as!r}: choose from {', '.join(EXPERT_FORMATS)}")
    return name


class QuantisedExperts:
    """The quantised copies in a model, in force until `remove`.

    Attributes:
        held_as: Their format, one of `EXPERT_FORMATS`.
        bits: Precision at which the weights were last set to be read [bit], scales not counted.
    """

    def __init__(self, model: nn.Module, held_as: str, blocks: Mapping[str, QuantisedBlock]) -> None:
        self.held_as = held_as
        self.bits = precision_of(held_as)
        self._model, self._blocks = model, dict(blocks)
        self._before = _implementation(model)
        modules = expert_blocks(model)
        for name, quantised in self._blocks.items():
            set_quantised_experts(modules[name], quantised)
        _set_implementation(model, register_experts())
        forget_compiled_code()

    @property
    def num_bytes(self) -> int:
        """Memory that the copies take, beside the model's own weights [byte]."""
        return sum(block.num_bytes for block in self._blocks.values())

    @property
    def banks(self) -> list[ExpertBank]:
        """The banks in layer order; none for formats of one precision."""
        return [block.bank for block in self._blocks.values() if block.bank is not None]

    def set_bits(self, bits: int) -> None:
        """Precision at which every bank is read from now on: 2, 4 or 8, without a new copy or a new CUDA graph.

        Raises:
            ConfigError: The experts are in no bank, or another precision.
        """
        if not self.banks:
            raise ConfigError(f"experts held as {self.held_as} have one precision: choose experts='bank'")
        for bank in self.banks:
            bank.set_bits(bits)
        self.bits = bits

    def remove(self) -> None:
        """Give the model its own experts and their implementation back; harmless when called again."""
        if not self._blocks:
            return
        for name, block in expert_blocks(self._model).items():
            if quantised_experts(block) is self._blocks.get(name):
                set_quantised_experts(block, None)
        self._blocks = {}
        _set_implementation(self._model, self._before)
        forget_compiled_code()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


@torch.no_grad()
def quantise_experts(
    model: nn.Module,
    held_as: str = "int4",
    *,
    group_size: int = 128,
    moments: Mapping[str, Moments] | None = None,
    progress: Callable[[str], None] | None = None,
) -> QuantisedExperts:
    """Have a model compute with a quantised copy of its experts, on its own device, until the result is removed.

    The model's parameters, its state dict and its module structure are left alone; their memory stays in use.

    Args:
        model: A Mixture-of-Experts model of Transformers.
        held_as: One of `EXPERT_FORMATS`.
        group_size: Columns that share a scale, for integers and banks: 32, 64 or a multiple of 128.
        moments: By name of the experts block, what the experts were given on calibration text (`MomentWatch`);
            with them errors are compensated, which takes about ten times as long; fp8 rounds each weight by itself.
        progress: Called with a line before each layer.

    Raises:
        ConfigError: An unknown format or group, or moments that do not belong to them.
        UnsupportedModelError: Experts that the kernels do not compute, or quantised already.
    """
    held_as = _known(held_as)  # refuses an unknown format before the model is looked at
    blocks = expert_blocks(model)
    if any(quantised_experts(block) is not None for block in blocks.values()):
        raise ConfigError("the experts of this model are quantised already: remove that copy first")
    seen = moments or {}
    unknown = sorted(set(seen) - set(blocks))
    if unknown:
        raise ConfigError(f"moments of {', '.join(unknown)}: the experts blocks are {', '.join(blocks)}")
    made = {}
    for place, (name, block) in enumerate(blocks.items()):
        if progress is not None:
            progress(f"experts of layer {place + 1} of {len(blocks)} as {held_as}")
        made[name] = _quantised(block, held_as, group_size, seen.get(name))
    return QuantisedExperts(model, held_as, made)


def _quantised(block: nn.Module, held_as: str, group_size: int, moments: Moments | None) -> QuantisedBlock:
    dense = experts_of(block)
    if held_as in _BANKS:
        bank = ExpertBank.from_weights(dense, group_size=group_size, moments=moments)
        bank.set_bits(_BANKS[held_as])
        return QuantisedBlock(bank.weights(), bank)
    moment1 = None if moments is None else moments.fc1_moment()
    moment2 = None if moments is None else moments.fc2_moment()
    weights = ExpertWeights(
        fc1=_matrices(dense.fc1, held_as, group_size, moment1),
        fc2=_matrices(dense.fc2, held_as, group_size, moment2),
        activation=dense.activation,
        bias1_EN=dense.bias1_EN,
        bias2_ED=dense.bias2_ED,
    )
    return QuantisedBlock(weights)


def _matrices(dense: Matrices, held_as: str, group_size: int, moment_ECC: torch.Tensor | None) -> Matrices:
    assert isinstance(dense, DenseMatrices)
    if held_as in _FP8:
        return quantize_fp8(dense.weight_ENC, blocks=_FP8[held_as])
    return quantize(dense.weight_ENC, _INTEGERS[held_as], group_size=group_size, moment_ECC=moment_ECC).matrices()


def _implementation(model: Any) -> str | None:
    name: str | None = getattr(model.config, "_experts_implementation", None)
    return name


def _set_implementation(model: Any, name: str | None) -> None:
    if name is None:
        model.config._experts_implementation = None
    else:
        model.set_experts_implementation(name)
