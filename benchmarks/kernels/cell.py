"""One cell of the table: an operation at one shape and token count, with inputs and weights for several layers.

Shapes: T tokens, K experts per token, E experts, D model width.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from benchmarks.arms import union_of_first
from benchmarks.kernels.formats import FORMATS, make_experts
from thermoe.kernels.expert_mlp.weights import ExpertWeights
from thermoe.profiling.draw import Draw
from thermoe.types import NAMED_SHAPES, MoEShape, RoutingKnobs

SHAPES: dict[str, MoEShape] = NAMED_SHAPES | {
    "tiny": MoEShape(num_layers=2, hidden_size=192, inter_size=96, num_experts=16, top_k=4)
}
L2_BYTES = 60e6
L2_TIMES = 5.0  # the experts that one replay touches are this many times the cache
MIN_LAYERS, MAX_LAYERS, CPU_LAYERS = 4, 48, 2
SMALL_OP_LAYERS = 48
WEIGHT_BUDGET_BYTES = 24e9  # of one format


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What one layer is given.

    Attributes:
        x_TD: Hidden states, bf16 on a GPU.
        logits_TE: float32 scores of a random router on these hidden states.
        ids_TK, weights_TK: Softmax top-k of the scores, int64 and float32, renormalised.
        distinct_experts: Experts that `ids_TK` touches.
        union_experts: Experts that the union policy of the benchmarks loads.
    """

    x_TD: Tensor
    logits_TE: Tensor
    ids_TK: Tensor
    weights_TK: Tensor
    distinct_experts: int
    union_experts: int


class WeightStore:
    """Weights of one shape, each layer its own, made when first asked for and kept for the next token count."""

    def __init__(self, shape: MoEShape, device: torch.device) -> None:
        self._shape, self._device = shape, device
        self._layers: dict[str, list[ExpertWeights]] = {}

    def layers(self, name: str, count: int) -> list[ExpertWeights]:
        """The first `count` layers in a format."""
        made = self._layers.setdefault(name, [])
        while len(made) < count:
            made.append(make_experts(name, self._shape, self._device, seed=len(made)))
        return made[:count]


@dataclass(slots=True)
class Cell:
    """Inputs of all layers at one shape and token count; weights by format.

    Attributes:
        shape_name, shape, num_tokens, device: What is asked for.
        store: Weights, shared by the cells of a shape.
        inputs: One for each layer.
        references: Float64 results by operation, format and layer, once they were needed.
    """

    shape_name: str
    num_tokens: int
    device: torch.device
    store: WeightStore
    inputs: list[LayerInputs] = field(default_factory=list)
    references: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> MoEShape:
        """Sizes of the layers."""
        return SHAPES[self.shape_name]

    def input(self, layer: int) -> LayerInputs:
        """Inputs of a layer; always the same for the same layer."""
        while len(self.inputs) <= layer:
            self.inputs.append(_draw_inputs(self.shape, self.num_tokens, self.device, seed=1000 + len(self.inputs)))
        return self.inputs[layer]

    def distinct_experts(self, num_layers: int, *, union: bool = False) -> float:
        """Experts touched, mean over the first layers; by the tokens' own choice or under the union policy."""
        inputs = [self.input(layer) for layer in range(num_layers)]
        return sum(given.union_experts if union else given.distinct_experts for given in inputs) / num_layers


def layers_needed(shape: MoEShape, fmt: str, distinct_experts: float, device: torch.device) -> int:
    """Layers whose touched experts are together several times the cache, as far as memory goes."""
    if device.type != "cuda":
        return CPU_LAYERS
    needed = math.ceil(L2_TIMES * L2_BYTES / (distinct_experts * FORMATS[fmt].expert_bytes(shape)))
    affordable = max(2, int(WEIGHT_BUDGET_BYTES / FORMATS[fmt].held_bytes(shape)))
    return min(max(needed, MIN_LAYERS), affordable, MAX_LAYERS)


def _draw_inputs(shape: MoEShape, num_tokens: int, device: torch.device, seed: int) -> LayerInputs:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    draw = Draw(device, dtype, seed)
    x_TD = draw.normal(num_tokens, shape.hidden_size)
    router_ED = draw.weights(shape.num_experts, shape.hidden_size)
    logits_TE = x_TD.float() @ router_ED.float().T  # in bf16 many scores would tie
    weights_TK, ids_TK = logits_TE.softmax(dim=-1).topk(shape.top_k, dim=-1)
    weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    first_TK = ids_TK[:, : union_k0(shape)]  # top-k gives the best first
    distinct, union = (int(ids.unique().numel()) for ids in (ids_TK, first_TK))
    return LayerInputs(x_TD, logits_TE, ids_TK, weights_TK, distinct, union)


def union_k0(shape: MoEShape) -> int:
    """First choices that the union policy of the benchmarks loads: half of a token's experts."""
    return max(1, shape.top_k // 2)


def slot_rows(cell: Cell, layer: int) -> Tensor:
    """(N, D) rows to combine, always the same for the same layer."""
    x_TD = cell.input(layer).x_TD
    return Draw(cell.device, x_TD.dtype, seed=layer).normal(len(x_TD) * cell.shape.top_k, x_TD.shape[1])


def union_knobs(shape: MoEShape, num_layers: int) -> RoutingKnobs:
    """Every token's first half of its experts is loaded, and nothing else."""
    return union_of_first(replace(shape, num_layers=num_layers), union_k0(shape))
