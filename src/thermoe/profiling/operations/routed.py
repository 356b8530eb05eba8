"""Which experts each step of a workbench touches, and the weights that it reads.

Shapes: T tokens, K slots per token, R routed rows, A touched experts, S steps.
"""

import numpy as np
import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.expert_mlp import ExpertWeights
from thermoe.profiling.case import Case, draw_expert_ids, load_skew
from thermoe.profiling.draw import Draw
from thermoe.profiling.formats import held_bytes
from thermoe.profiling.operations.bench import Setup, activation_dtype
from thermoe.types import IntArray

MAX_DRAWS = 16  # for operations without weights, which need not walk through all experts


class Routed:
    """Ids, gates and layers of all steps.

    Steps walk through the experts of each copy of the layer in an order drawn once, so that an expert comes again
    only after all the others.

    Attributes:
        ids_SR: Expert of every routed row, in the order (token, slot), one array for each step.
        skew: Fullest over mean load, mean over the steps.
        layers: What step s reads is layers[s % len(layers)].
    """

    def __init__(self, case: Case, setup: Setup, *, weights: bool) -> None:
        self._case, self._device = case, setup.device
        copies = setup.copies(held_bytes(case)) if weights else 1
        self.layers: list[ExpertWeights] = setup.weights.layers(case, copies) if weights else []
        orders = [np.random.default_rng(1000 + c).permutation(case.num_experts) for c in range(copies)]
        drawn = [
            draw_expert_ids(case, step, _block(orders[step % copies], step // copies, case.distinct_experts))
            for step in range(setup.steps if weights else min(setup.steps, MAX_DRAWS))
        ]
        self.ids_SR = [drawn[step % len(drawn)] for step in range(setup.steps)]
        self.skew = float(np.mean([load_skew(ids) for ids in drawn[:MAX_DRAWS]]))

    def layer(self, step: int) -> ExpertWeights:
        """Weights that a step reads."""
        return self.layers[step % len(self.layers)]

    def slots(self) -> Tensor:
        """(S, T, K) int64 ids on the device; -1 where a token has no further slot."""
        size = self._case.tokens * self._case.top_k
        padded = np.stack([np.pad(ids, (0, size - ids.size), constant_values=-1) for ids in self.ids_SR])
        return torch.as_tensor(padded, device=self._device).view(-1, self._case.tokens, self._case.top_k)

    def gates(self) -> Tensor:
        """(T, K) float32 weights of the slots, which sum to one for each token."""
        raw_TK = Draw(self._device, torch.float32, 1).normal(self._case.tokens, self._case.top_k).sigmoid()
        return raw_TK / raw_TK.sum(dim=1, keepdim=True)

    def in_expert_order(self) -> tuple[Tensor, Tensor]:
        """(S, R) ids in ascending order and (S, E) int32 ends of each expert's rows."""
        sorted_SR = np.stack([np.sort(ids) for ids in self.ids_SR])
        ends = np.stack([np.bincount(ids, minlength=self._case.num_experts).cumsum() for ids in sorted_SR])
        return (
            torch.as_tensor(sorted_SR, device=self._device),
            torch.as_tensor(ends.astype(np.int32), device=self._device),
        )

    def rows(self, width: int) -> Tensor:
        """(R, width) activations."""
        return Draw(self._device, activation_dtype(self._case)).normal(self._case.routed_rows, width)


def whole_tokens(case: Case) -> None:
    """Refuse rows that do not form whole tokens."""
    if case.routed_rows % case.top_k:
        raise ConfigError(f"{case}: routed_rows must be a multiple of top_k to form whole tokens")


def _block(order: IntArray, number: int, size: int) -> IntArray:
    """The next `size` experts of a round that never ends."""
    chosen: IntArray = order[(number * size + np.arange(size)) % order.size]
    return chosen
