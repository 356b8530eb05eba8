"""What `expert_mlp` refuses before a kernel reads past the end of a tensor, or reads it as another type.

Shapes: T tokens, K experts per token, E experts, N rows and C columns of a matrix, D model width, I expert width,
G scale groups, P precisions.
"""

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.dispatch import DispatchPlan
from thermoe.kernels.expert_mlp.planes import check_planes, values_shape
from thermoe.kernels.expert_mlp.weights import (
    CHUNK,
    Activation,
    DenseMatrices,
    ExpertWeights,
    Fp8Matrices,
    Matrices,
    PlaneMatrices,
)

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_tokens(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights) -> None:
    """Refuse tokens and routing that do not fit each other or these experts (checked before)."""
    if x_TD.ndim != 2 or x_TD.shape[1] != experts.d_model:
        raise ConfigError(f"tokens of shape {tuple(x_TD.shape)}: these experts need (tokens, {experts.d_model})")
    if x_TD.dtype not in _DTYPES:
        raise ConfigError(f"tokens of {x_TD.dtype}: give bfloat16, float16 or float32")
    dense = [m.weight_ENC.dtype for m in (experts.fc1, experts.fc2) if isinstance(m, DenseMatrices)]
    if any(dtype != x_TD.dtype for dtype in dense):
        raise ConfigError(f"tokens of {x_TD.dtype} for weights of {dense}: give all the same dtype")
    if ids_TK.ndim != 2 or ids_TK.shape[0] != x_TD.shape[0] or weights_TK.shape != ids_TK.shape or not ids_TK.shape[1]:
        raise ConfigError(
            f"ids of shape {tuple(ids_TK.shape)} and weights of shape {tuple(weights_TK.shape)} for "
            f"{x_TD.shape[0]} tokens: both must be (tokens, experts per token)"
        )
    if ids_TK.dtype not in (torch.int32, torch.int64) or not weights_TK.is_floating_point():
        raise ConfigError(f"ids of {ids_TK.dtype} and weights of {weights_TK.dtype}: give integers and floats")


def check_experts(experts: ExpertWeights) -> None:
    """Refuse experts that are no `ExpertWeights`, or whose tensors do not belong together."""
    if not isinstance(experts, ExpertWeights):
        raise ConfigError(f"experts of type {type(experts).__name__}: needs ExpertWeights, {_remedy(experts)}")
    if not isinstance(experts.activation, Activation):
        raise ConfigError(f"activation {experts.activation!r}: give one of Activation ({', '.join(Activation)})")
    _check_matrices("first", experts.fc1)
    _check_matrices("second", experts.fc2)
    rows = experts.inter_size * (2 if experts.activation.gated else 1)
    if experts.fc1.shape[1] != rows or experts.fc2.shape[:2] != (experts.num_experts, experts.d_model):
        raise ConfigError(
            f"matrices of shapes {experts.fc1.shape} and {experts.fc2.shape} with {experts.activation}: the first "
            f"needs {rows} rows for {experts.inter_size} columns of the second"
        )
    num_experts = experts.num_experts
    _need("bias of the first matrix", experts.bias1_EN, (num_experts, rows), torch.float32)
    _need("bias of the second matrix", experts.bias2_ED, (num_experts, experts.d_model), torch.float32)
    _need("bits of the experts", experts.bits_E, (num_experts,), torch.int32)


def check_plan(plan: DispatchPlan | None, ids_TK: Tensor, num_experts: int) -> None:
    """Refuse a plan that is not one of so many slots and experts."""
    if plan is not None:
        _need("slots of the plan", plan.slot_N, (ids_TK.numel(),), torch.int32)
        _need("offsets of the plan", plan.offsets_E1, (num_experts + 1,), torch.int32)


def _remedy(experts: object) -> str:
    """How what was given becomes `ExpertWeights`."""
    if callable(getattr(experts, "weights", None)) and hasattr(experts, "bits_E"):
        return "give bank.weights() of a bank"
    if isinstance(experts, torch.nn.Module):
        return "give thermoe.experts.experts_of(module) of an experts block"
    return "as ExpertWeights(fc1=..., fc2=...) or, from tensors, thermoe.experts.dense_experts makes it"


def _check_matrices(which: str, matrices: Matrices) -> None:
    if isinstance(matrices, PlaneMatrices):
        _check_codes(which, matrices)
        return
    if not isinstance(matrices, (DenseMatrices, Fp8Matrices)):
        raise ConfigError(
            f"{which} matrix is {type(matrices).__name__}: give DenseMatrices, Fp8Matrices or PlaneMatrices, "
            "such as quantize(...).matrices()"
        )
    held = matrices.weight_ENC if isinstance(matrices, DenseMatrices) else matrices.code_ENC
    if held.ndim != 3:
        raise ConfigError(f"{which} matrix of shape {tuple(held.shape)}: needed (experts, rows, columns)")
    if isinstance(matrices, Fp8Matrices):
        num_experts, rows, columns = matrices.shape
        _need(f"codes of the {which} matrix", held, matrices.shape, torch.float8_e4m3fn)
        blocks = (num_experts, -(-rows // CHUNK), -(-columns // CHUNK))
        wanted = blocks if matrices.blocks else (num_experts, rows)
        _need(f"scales of the {which} matrix", matrices.scale, wanted, torch.float32)


def _check_codes(which: str, matrices: PlaneMatrices) -> None:
    check_planes(matrices.planes, matrices.columns)
    size = matrices.group_size
    if size not in (32, 64) and (size < CHUNK or size % CHUNK):
        raise ConfigError(f"{which} matrix in groups of {size} columns: choose 32, 64 or a multiple of {CHUNK}")
    wanted = values_shape(matrices)
    _need(f"scales of the {which} matrix", matrices.scale_PEGN, wanted, torch.float16)
    _need(f"zeros of the {which} matrix", matrices.zero_PEGN, wanted, torch.float16)


def _need(what: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor is not None and (tuple(tensor.shape) != shape or tensor.dtype != dtype):
        raise ConfigError(f"{what}: {tuple(tensor.shape)} of {tensor.dtype}, needed {shape} of {dtype}")
