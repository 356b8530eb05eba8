"""How a layer's products are cut into jobs for the decode kernel, and which layers it takes.

Shapes: E experts, D model width, I expert width, C columns of a matrix, G scale groups of a row, T tokens, K experts
per token. The terms (segment, run, unit, job) are explained in layout.cuh.
"""

from dataclasses import dataclass

import torch

from thermoe.kernels.expert_mlp.cuda.boxes import PLANE_COLUMNS, tensors_of
from thermoe.kernels.expert_mlp.weights import (
    Activation,
    DenseMatrices,
    ExpertWeights,
    Fp8Matrices,
    Matrices,
    PlaneMatrices,
)

MAX_SLOTS = 512  # T * K: the kernel makes its plan with a thread for each
MAX_EXPERTS = 512
MAX_UNITS = 32768  # of an expert at a matrix: times 512 segments at a cost of 130 they stay below 2**32 (plan.cuh)
SHARED_BYTES = 215 * 1024  # for activations, shares and the ring of weights (static_assert in layout.cuh)
PART_TILE_BYTES = 1024  # a warp's share of a unit, for a tile of 8 tokens
SLOT_BYTES = 9 * 1024  # most that a slot of the ring takes; there is at least one for each warp
SPLIT_COLUMNS = 2048  # of the second matrix, whose activations a block holds at a time
ROW_CAPS = (32, 24, 16, 8, 4, 2, 1)  # tokens of an expert that share one reading of its weights
PLANE_ROW_CAP = 16  # four tiles of four, each token in two bytes
ACTIVATIONS = {Activation.SWIGLU: 0, Activation.GEGLU: 1, Activation.SWIGLU_CLAMPED: 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """A layer as the kernel sees it.

    Attributes:
        format: the C++ type of its weights, for example `Planes<4, 128, false, false>`.
        jobs: of a unit, for both matrices.
        groups: blocks of scales along a row, for both matrices.
        splits: parts of the second matrix's columns.
        row_cap: most tokens of a segment.
        bits: of every expert's codes where `bits_E` does not say.
    """

    format: str
    jobs: tuple[int, int]
    groups: tuple[int, int]
    splits: int
    row_cap: int
    bits: int


def geometry(experts: ExpertWeights, warps: int = 8) -> Geometry | str:
    """Cut a layer into jobs for `warps` warps that multiply, or say in one sentence why the kernel does not take it."""
    if experts.activation not in ACTIVATIONS:
        return f"activation {experts.activation}: the kernel takes gated ones"
    D, I = experts.d_model, experts.inter_size  # noqa: E741
    if D % 32 or I % 16:
        return f"widths {D} and {I}: the kernel needs a model width in 32s and an expert width in 16s"
    if experts.num_experts > MAX_EXPERTS:
        return f"{experts.num_experts} experts: the kernel takes up to {MAX_EXPERTS}"
    name, other = _format(experts.fc1), _format(experts.fc2)
    if name != other:
        return f"matrices of formats {name} and {other}: the kernel needs one for both"
    if "<" not in name and name != "Bf16":
        return name
    refusal = _alignment(experts.fc1) or _alignment(experts.fc2) or _types(experts)
    if refusal:
        return refusal
    job_columns = 128 if name == "Bf16" else PLANE_COLUMNS
    whole = -(-I // job_columns)
    splits = -(-whole * job_columns // SPLIT_COLUMNS)
    jobs = (-(-D // job_columns), -(-whole // splits))
    sums = job_columns // experts.fc1.group_size if isinstance(experts.fc1, PlaneMatrices) else 0
    row_cap = _row_cap(max(jobs), job_columns, sums, warps)
    if row_cap == 0:
        return f"model width {D}: a token does not fit in shared memory"
    if splits * (D // 32) > MAX_UNITS or I // 16 > MAX_UNITS:
        return f"widths {D} and {I}: the kernel counts up to {MAX_UNITS} units of an expert"
    bits = experts.fc1.max_bits if isinstance(experts.fc1, PlaneMatrices) else 16
    return Geometry(
        format=name,
        jobs=jobs,
        groups=(_groups(experts.fc1), _groups(experts.fc2)),
        splits=splits,
        row_cap=row_cap,
        bits=bits,
    )


def _row_cap(jobs: int, job_columns: int, sums: int, warps: int) -> int:
    pitch, room = 2 * job_columns * jobs + 64, SHARED_BYTES - SLOT_BYTES * warps
    for rows in ROW_CAPS if sums == 0 else [cap for cap in ROW_CAPS if cap <= PLANE_ROW_CAP]:
        sum_bytes, part_bytes = 64 * _tiles(rows, 4) * sums * jobs, PART_TILE_BYTES * _tiles(rows, 8) * warps
        if rows * pitch + sum_bytes + part_bytes <= room:
            return rows
    return 0


def _tiles(rows: int, tokens: int) -> int:
    """1, 2, 4 or 8 tiles of so many tokens (`tiles_of` of layout.cuh)."""
    return next(tiles for tiles in (1, 2, 4, 8) if rows <= tiles * tokens)


def _format(matrices: Matrices) -> str:
    """The C++ type, or a sentence."""
    if isinstance(matrices, DenseMatrices):
        dtype = matrices.weight_ENC.dtype
        return "Bf16" if dtype == torch.bfloat16 else f"weights of {dtype}: the kernel takes bf16"
    if isinstance(matrices, Fp8Matrices):
        return "Fp8<true>" if matrices.blocks else "Fp8<false>"
    if matrices.group_size not in (32, 64, 128):
        return f"groups of {matrices.group_size} columns: the kernel takes 32, 64 and 128"
    flags = ", ".join(str(flag).lower() for flag in (matrices.nested, matrices.zero_PEGN is not None))
    return f"Planes<{matrices.max_bits}, {matrices.group_size}, {flags}>"


def _groups(matrices: Matrices) -> int:
    return matrices.scale.shape[-1] if isinstance(matrices, Fp8Matrices) and matrices.blocks else 0


def _alignment(matrices: Matrices) -> str:
    """Why rows cannot be copied in 16-byte pieces, or nothing."""
    columns = matrices.shape[2]
    step = 16 if isinstance(matrices, Fp8Matrices) else 8
    if columns % step:
        return f"rows of {columns} columns: the kernel needs a multiple of {step}"
    if any(tensor.data_ptr() % 16 or not tensor.is_contiguous() for tensor in tensors_of(matrices)):
        return "weights that are not contiguous, or do not begin at a multiple of 16 bytes"
    return ""


def _types(experts: ExpertWeights) -> str:
    """Which tensor beside the weights the kernel would misread, or nothing."""
    wanted = [("bits", experts.bits_E, torch.int32, 4)]
    wanted += [("biases", bias, torch.float32, 4) for bias in (experts.bias1_EN, experts.bias2_ED)]
    for matrices in (experts.fc1, experts.fc2):
        if isinstance(matrices, Fp8Matrices):
            wanted.append(("scales", matrices.scale, torch.float32, 4))
        if isinstance(matrices, PlaneMatrices):  # brought by the copy engine
            wanted.append(("scales", matrices.scale_PEGN, torch.float16, 16))
            wanted.append(("zeros", matrices.zero_PEGN, torch.float16, 16))
    for name, tensor, dtype, step in wanted:
        if tensor is not None and (tensor.dtype != dtype or tensor.data_ptr() % step or not tensor.is_contiguous()):
            return (
                f"{name} of {tensor.dtype}: the kernel takes contiguous {dtype} that begins at a multiple of {step} B"
            )
    return ""
