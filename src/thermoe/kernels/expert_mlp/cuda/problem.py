"""The kernel's one parameter: `Problem` of layout.cuh, field by field."""

import ctypes

import torch
from torch import Tensor

from thermoe.kernels.expert_mlp.cuda.boxes import tensors_of
from thermoe.kernels.expert_mlp.cuda.geometry import ACTIVATIONS, Geometry
from thermoe.kernels.expert_mlp.weights import ExpertWeights, Fp8Matrices

TensorMap = ctypes.c_uint64 * 16
_Pair = ctypes.c_int32 * 2
_Pointers = ctypes.c_void_p * 2


class Problem(ctypes.Structure):
    """What one launch is asked to do; sizes and pointers only."""

    _fields_ = (
        ("map", (TensorMap * 5) * 2),
        ("x", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("gates", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("hidden", ctypes.c_void_p),
        ("product", ctypes.c_void_p),
        ("counters", ctypes.c_void_p),
        ("scale", _Pointers),
        ("bias", _Pointers),
        ("bits", ctypes.c_void_p),
        ("tokens", ctypes.c_int32),
        ("top_k", ctypes.c_int32),
        ("experts", ctypes.c_int32),
        ("columns", _Pair),
        ("jobs", _Pair),
        ("groups", _Pair),
        ("planes", ctypes.c_int32),
        ("splits", ctypes.c_int32),
        ("row_cap", ctypes.c_int32),
        ("bits_all", ctypes.c_int32),
        ("wide_ids", ctypes.c_int32),
        ("narrow_gates", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("ring", ctypes.c_int32),
        ("unused", ctypes.c_int32 * 6),  # C++ rounds the size up to the 64 bytes a tensor map is aligned to
    )


COUNTER_WORDS = 32 + 2 * 512
SCALE_MAP, ZERO_MAP = 3, 4  # behind the maps of planes


def fill(
    cut: Geometry, experts: ExpertWeights, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, out_TD: Tensor
) -> Problem:
    """Everything but the tensor maps, the workspace and the counters."""
    problem = Problem()
    problem.x, problem.ids, problem.gates = x_TD.data_ptr(), ids_TK.data_ptr(), weights_TK.data_ptr()
    problem.out = out_TD.data_ptr()
    problem.bits = experts.bits_E.data_ptr() if experts.bits_E is not None else None
    for m, (matrices, bias) in enumerate(((experts.fc1, experts.bias1_EN), (experts.fc2, experts.bias2_ED))):
        problem.scale[m] = matrices.scale.data_ptr() if isinstance(matrices, Fp8Matrices) else None
        problem.bias[m] = bias.data_ptr() if bias is not None else None
    problem.tokens, problem.top_k = ids_TK.shape
    problem.experts = experts.num_experts
    problem.columns = _Pair(experts.d_model, experts.inter_size)
    problem.jobs, problem.groups = _Pair(*cut.jobs), _Pair(*cut.groups)
    problem.planes, problem.splits, problem.row_cap = len(tensors_of(experts.fc1)), cut.splits, cut.row_cap
    problem.bits_all = cut.bits
    problem.wide_ids, problem.narrow_gates = ids_TK.dtype == torch.int64, weights_TK.dtype == torch.bfloat16
    problem.activation = ACTIVATIONS[experts.activation]
    return problem
