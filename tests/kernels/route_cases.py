"""Knobs and scores for the tests of routing."""

from dataclasses import replace

import numpy as np
import torch

from thermoe.kernels.route import LayerKnobs
from thermoe.runtime.knobs import DeviceKnobs
from thermoe.types import RoutingKnobs

# What the host promises of the knobs when it promises nothing.
GENERAL = {"biased": True, "priced": True, "ranked": True, "slots_kept": 0}


def layer_knobs(knobs: RoutingKnobs, layer: int = 0) -> LayerKnobs:
    return DeviceKnobs(knobs, "cpu").layer(layer)


def neutral(num_experts: int, slots: int, /, **changes) -> RoutingKnobs:
    arrays = {}
    for name, value in changes.items():
        scalar = name in ("union", "value_power")
        arrays[name] = value if scalar else np.asarray(value)[None]
    return replace(RoutingKnobs.neutral(1, num_experts, slots), **arrays)


def random_scores(seed: int, num_tokens: int, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ranks_TE = torch.randn(num_tokens, num_experts, generator=generator)
    return ranks_TE, ranks_TE.softmax(-1)
