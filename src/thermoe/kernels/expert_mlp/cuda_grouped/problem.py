"""The kernel's one parameter: `Problem` of layout.cuh, field by field; and which layers it takes.

Shapes: T tokens, K experts per token, N = T * K slots, E experts, D model width, I expert width.
"""

import ctypes

import torch
from torch import Tensor

from thermoe.kernels.dispatch import DispatchPlan
from thermoe.kernels.expert_mlp.cuda_grouped.driver import TensorMap
from thermoe.kernels.expert_mlp.weights import (
    CHUNK,
    Activation,
    DenseMatrices,
    ExpertWeights,
    Fp8Matrices,
    Matrices,
    PlaneMatrices,
)

MAX_EXPERTS = 512
COUNTER_WORDS = 32 + MAX_EXPERTS
PLACE_BOX_ROWS = 16  # of layout.cuh
ACTIVATIONS = {Activation.SWIGLU: 0, Activation.GEGLU: 1, Activation.SWIGLU_CLAMPED: 2}
_PLANES = ("int2", "int4", "int8", "bank4", "bank8")
_PIECE_BYTES = 16  # by which rows are copied and stored
_MOST_ROWS = 2**31 - 512  # of all pieces of a plane: numbers of rows are 32 bits, and a tile may reach past the last
_Pair, _Pointers = ctypes.c_int32 * 2, ctypes.c_void_p * 2


class Problem(ctypes.Structure):
    """What one launch is asked to do; sizes and pointers only."""

    _fields_ = (
        ("map", TensorMap * 2),
        ("plane", TensorMap * 3 * 2),
        ("hidden_map", TensorMap),
        ("tokens", ctypes.c_void_p),
        ("hidden", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("counters", ctypes.c_void_p),
        ("scale", _Pointers),
        ("bits", ctypes.c_void_p),
        ("bias", _Pointers),
        ("row_scale", _Pointers),
        ("source_scale", _Pointers),
        ("experts", ctypes.c_int32),
        ("top_k", ctypes.c_int32),
        ("columns", _Pair),
        ("parts", ctypes.c_int32),
        ("lag", ctypes.c_int32),
        ("unused", _Pair * 6),  # up to a multiple of the alignment of tensor maps
    )


def source_columns(experts: ExpertWeights) -> tuple[int, int]:
    """Of tokens and hidden values as the kernel reads them: with codes whole chunks."""
    if not isinstance(experts.fc1, PlaneMatrices):
        return experts.d_model, experts.inter_size
    return -(-experts.d_model // CHUNK) * CHUNK, -(-experts.inter_size // CHUNK) * CHUNK


def weights_of(matrices: Matrices) -> Tensor:
    """(E, N, C) bf16 weights or e4m3 codes, or the first of the planes."""
    if isinstance(matrices, PlaneMatrices):
        return matrices.planes[0]
    if isinstance(matrices, DenseMatrices):
        return matrices.weight_ENC
    assert isinstance(matrices, Fp8Matrices), "asked by `layer_refusal`"
    return matrices.code_ENC


_TAKEN = "bf16, e4m3 with a scale for each row, or bit planes in groups of 128 without zeros, both alike"


def layer_refusal(experts: ExpertWeights, num_slots: int) -> str | None:
    """Why the kernel does not take these experts and this many slots, in one sentence, or None."""
    if experts.activation not in ACTIVATIONS:
        return f"activation {experts.activation}: the kernel takes gated ones"
    kinds = {_kind(matrices) for matrices in (experts.fc1, experts.fc2)}
    if len(kinds) > 1 or not kinds <= {"bf16", "e4m3", *_PLANES}:
        return f"weights in {' and '.join(sorted(kinds))}: the kernel takes {_TAKEN}"
    D, I = experts.d_model, experts.inter_size  # noqa: E741
    step = 16 if "e4m3" in kinds else 8
    if D % 32 or I % step:
        return f"widths {D} and {I}: the kernel needs a model width in 32s and an expert width in {step}s"
    if experts.num_experts > MAX_EXPERTS:
        return f"{experts.num_experts} experts: the kernel takes up to {MAX_EXPERTS}"
    if not 0 < num_slots * max(source_columns(experts)) // 8 < 2**31:
        return f"{num_slots} slots of widths {D} and {I}: the kernel takes 1 to 2**31 pieces of 16 bytes"
    return _memory(experts)


def _kind(matrices: Matrices) -> str:
    if isinstance(matrices, DenseMatrices):
        return "bf16" if matrices.weight_ENC.dtype == torch.bfloat16 else str(matrices.weight_ENC.dtype)
    if isinstance(matrices, Fp8Matrices):
        return "blocks of e4m3" if matrices.blocks else "e4m3"
    name = f"{'bank' if matrices.nested else 'int'}{matrices.max_bits}"
    taken = matrices.zero_PEGN is None and matrices.group_size == CHUNK
    return name if taken else f"{name} in other groups or with zeros"


def _memory(experts: ExpertWeights) -> str | None:
    for matrices in (experts.fc1, experts.fc2):
        parts = matrices.planes if isinstance(matrices, PlaneMatrices) else (weights_of(matrices),)
        if any(part.data_ptr() % _PIECE_BYTES or not part.is_contiguous() for part in parts):
            return "weights that are not contiguous, or do not begin at a multiple of 16 bytes"
        if isinstance(matrices, PlaneMatrices) and parts[-1].numel() // parts[-1].shape[-1] > _MOST_ROWS:
            return f"planes of {tuple(parts[-1].shape)}: the kernel counts up to {_MOST_ROWS} rows of pieces"
    scales = [matrices.scale for matrices in (experts.fc1, experts.fc2) if isinstance(matrices, Fp8Matrices)]
    for name, tensor in (("biases", experts.bias1_EN), ("biases", experts.bias2_ED), *(("scales", s) for s in scales)):
        if tensor is not None and (tensor.dtype != torch.float32 or not tensor.is_contiguous()):
            return f"{name} of {tensor.dtype}: the kernel takes contiguous float32"
    halves = [matrices.scale_PEGN for matrices in (experts.fc1, experts.fc2) if isinstance(matrices, PlaneMatrices)]
    if any(scale.dtype != torch.float16 or not scale.is_contiguous() for scale in halves):
        return f"scales of codes of {halves[0].dtype}: the kernel takes contiguous float16"
    return None


def fill(experts: ExpertWeights, plan: DispatchPlan, top_k: int, hidden_NI: Tensor, y_ND: Tensor) -> Problem:
    """Everything but tensor maps, sources, counters, parts and lag."""
    problem = Problem()
    problem.hidden, problem.out = hidden_NI.data_ptr(), y_ND.data_ptr()
    problem.slots, problem.offsets = plan.slot_N.data_ptr(), plan.offsets_E1.data_ptr()
    for m, (matrices, bias) in enumerate(((experts.fc1, experts.bias1_EN), (experts.fc2, experts.bias2_ED))):
        problem.bias[m] = bias.data_ptr() if bias is not None else None
        problem.row_scale[m] = matrices.scale.data_ptr() if isinstance(matrices, Fp8Matrices) else None
        if isinstance(matrices, PlaneMatrices):
            problem.scale[m] = matrices.scale_PEGN.data_ptr()
    nested = isinstance(experts.fc1, PlaneMatrices) and experts.fc1.nested
    problem.bits = experts.bits_E.data_ptr() if nested and experts.bits_E is not None else None
    problem.experts, problem.top_k = experts.num_experts, top_k
    problem.columns = _Pair(experts.d_model, experts.inter_size)
    return problem
