"""Launches of the expert MLP: two products and the combination, with or without a dispatch plan.

Shapes: T tokens, K experts per token, S = T * K slots, E experts, D model width, I expert width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from thermoe.kernels.combine.triton import combine_triton
from thermoe.kernels.dispatch import DispatchPlan, dispatch_plan
from thermoe.kernels.expert_mlp.configs import MlpConfig, Tile
from thermoe.kernels.expert_mlp.triton_mlp import few_tokens_kernel, many_tokens_kernel
from thermoe.kernels.expert_mlp.triton_quantize import quantize_rows
from thermoe.kernels.expert_mlp.weights import DenseMatrices, ExpertWeights, Fp8Matrices, Matrices

_OPERANDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
_DENSE, _FP8, _FP8_BLOCKS, _PLANES = range(4)
_MOST_COLUMNS = 8192  # of a row that is quantised whole


@dataclass(frozen=True, slots=True)
class _Call:
    """What the launches of one call share."""

    ids_TK: Tensor
    weights_TK: Tensor
    config: MlpConfig
    operand: Any
    assembly: bool

    @property
    def top_k(self) -> int:
        return int(self.ids_TK.shape[1])


def expert_mlp_few(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights, config: MlpConfig, out_TD: Tensor
) -> None:
    """A few tokens (at most some hundred slots): no plan; overwrites `out_TD`."""
    call = _call(x_TD, ids_TK, weights_TK, config)
    hidden_SI = x_TD.new_empty(ids_TK.numel(), experts.inter_size)
    y_SD = x_TD.new_empty(ids_TK.numel(), experts.d_model, dtype=torch.float32)
    _few(call, x_TD, hidden_SI, experts, first=True)
    _few(call, hidden_SI, y_SD, experts, first=False)
    combine_triton(y_SD, weights_TK, ids_TK, experts.num_experts, out_TD, dependent=config.dependent)


def expert_mlp_many(
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights,
    config: MlpConfig,
    out_TD: Tensor,
    plan: DispatchPlan | None = None,
) -> None:
    """Any number of tokens, in tiles of a dispatch plan, which is made if it is not given; overwrites `out_TD`."""
    call = _call(x_TD, ids_TK, weights_TK, config)
    if plan is None:
        plan = dispatch_plan(ids_TK, weights_TK, experts.num_experts)
    hidden_SI = x_TD.new_empty(ids_TK.numel(), experts.inter_size)
    y_SD = x_TD.new_empty(ids_TK.numel(), experts.d_model)
    _many(call, x_TD, hidden_SI, experts, plan, first=True)
    _many(call, hidden_SI, y_SD, experts, plan, first=False)
    combine_triton(y_SD, weights_TK, ids_TK, experts.num_experts, out_TD, dependent=config.dependent)


def _call(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, config: MlpConfig) -> _Call:
    interpreted = triton.knobs.runtime.interpret  # its bf16 arithmetic is wrong, and it knows no assembly
    operand = tl.float32 if interpreted else _OPERANDS[x_TD.dtype]
    return _Call(ids_TK, weights_TK, config, operand, not interpreted and x_TD.dtype != torch.float32)


def _few(call: _Call, source: Tensor, target: Tensor, experts: ExpertWeights, *, first: bool) -> None:
    tile = call.config.fc1 if first else call.config.fc2
    num_slots, num_experts = call.ids_TK.numel(), experts.num_experts
    constants = _constants(call, tile, experts, first=first)
    few_tokens_kernel[(_row_blocks(tile, constants), min(num_slots, num_experts))](
        source,
        target,
        call.ids_TK,
        call.weights_TK,
        **_pointers(experts, first=first, eight=False),
        num_slots=num_slots,
        num_experts=num_experts,
        BY_SLOT=num_slots <= num_experts,
        BLOCK_S=max(16, triton.next_power_of_2(num_slots)),
        PDL=call.config.dependent,
        **constants,
        num_warps=tile.warps,
        **({"launch_pdl": True} if call.config.dependent else {}),
    )


def _many(
    call: _Call, source: Tensor, target: Tensor, experts: ExpertWeights, plan: DispatchPlan, *, first: bool
) -> None:
    tile = call.config.fc1 if first else call.config.fc2
    matrices = experts.fc1 if first else experts.fc2
    eight = call.config.eight and isinstance(matrices, Fp8Matrices) and source.shape[1] <= _MOST_COLUMNS
    source_scale = source
    if eight:
        source, source_scale = quantize_rows(source)
    num_experts = experts.num_experts
    constants = _constants(call, tile, experts, first=first)
    many_tokens_kernel[_planned_grid(call, tile, experts, constants)](
        source,
        source_scale,
        target,
        plan.slot_N,
        plan.offsets_E1,
        **_pointers(experts, first=first, eight=eight),
        num_experts=num_experts,
        TAIL=tile.tail,
        EIGHT=eight,
        BLOCK_E=triton.next_power_of_2(num_experts),
        **constants,
        num_warps=tile.warps,
    )


def _planned_grid(call: _Call, tile: Tile, experts: ExpertWeights, constants: dict[str, Any]) -> tuple[int]:
    """A program for each tile that a plan of so many slots may have."""
    num_slots = call.ids_TK.numel()
    most_tiles = triton.cdiv(num_slots, tile.tokens) + min(num_slots, experts.num_experts)
    return (int(most_tiles) * _row_blocks(tile, constants),)


def _row_blocks(tile: Tile, constants: dict[str, Any]) -> int:
    return int(triton.cdiv(constants["OUT"], tile.rows // 2 if constants["PAIR"] else tile.rows))


def _constants(call: _Call, tile: Tile, experts: ExpertWeights, *, first: bool) -> dict[str, Any]:
    matrices = experts.fc1 if first else experts.fc2
    columns = matrices.shape[2]
    return {
        **_format(matrices),
        "K": call.top_k,
        "FIRST": first,
        "ACTIVATION": experts.activation.value if first else "none",
        "PAIR": first and experts.activation.gated,
        "OUT": experts.inter_size if first else experts.d_model,
        "C": columns,
        "M": tile.rows,
        "N": tile.tokens,
        "BLOCK_K": tile.columns,
        "STAGES": tile.stages,
        "SCALE_IN": call.config.scale_in,
        "OPERAND": call.operand,
        "ASM": call.assembly,
    }


def _format(matrices: Matrices) -> dict[str, Any]:
    if isinstance(matrices, DenseMatrices):
        return {"FORMAT": _DENSE, "MAX_BITS": 0, "NESTED": False, "GROUP": 128}
    if isinstance(matrices, Fp8Matrices):
        return {"FORMAT": _FP8_BLOCKS if matrices.blocks else _FP8, "MAX_BITS": 0, "NESTED": False, "GROUP": 128}
    return {
        "FORMAT": _PLANES,
        "MAX_BITS": matrices.max_bits,
        "NESTED": matrices.nested,
        "GROUP": matrices.group_size,
    }


def _pointers(experts: ExpertWeights, *, first: bool, eight: bool) -> dict[str, Tensor | None]:
    matrices = experts.fc1 if first else experts.fc2
    pointers: dict[str, Tensor | None] = dict.fromkeys(("middle_ptr", "low_ptr", "scale_ptr", "zero_ptr", "bits_ptr"))
    if isinstance(matrices, DenseMatrices):
        pointers["w_ptr"] = matrices.weight_ENC
    elif isinstance(matrices, Fp8Matrices):
        pointers["w_ptr"] = matrices.code_ENC if eight else matrices.code_ENC.view(torch.uint8)
        pointers["scale_ptr"] = matrices.scale
    else:
        names = ("w_ptr", "middle_ptr", "low_ptr")
        pointers.update(zip(names, matrices.planes, strict=False))
        pointers["scale_ptr"], pointers["zero_ptr"] = matrices.scale_PEGN, matrices.zero_PEGN
        pointers["bits_ptr"] = experts.bits_E if matrices.nested else None
    pointers["bias_ptr"] = experts.bias1_EN if first else experts.bias2_ED
    return pointers
