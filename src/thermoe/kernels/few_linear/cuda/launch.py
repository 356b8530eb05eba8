"""The linear kernel: matrices side by side, their weights read once, before the launch before has ended.

Shapes: T tokens, C columns, N outputs of all matrices.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.cuda_build import CudaUnavailableError, Kernel, compile_source, is_available, make_current
from thermoe.kernels.few_linear.cuda.layout import SHARED_BYTES, TOKENS, Build, Cut, build_for, cut_for

SOURCES = Path(__file__).parent
_TILE, _MATRICES = 8, 3
_MOST_OUTPUTS = 1 << 24  # products with a number of clusters stay below 2**31
_Pointers, _Numbers = ctypes.c_void_p * _MATRICES, ctypes.c_int32 * _MATRICES
_CUT_FIELDS = ("stages", "rows", "round_tiles", "apart", "inbox_at", "parts_at", "stages_at")


class Problem(ctypes.Structure):
    """`Problem` of layout.cuh, field by field."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("weight", _Pointers),
        ("bias", _Pointers),
        ("ends", _Numbers),
        ("tokens", ctypes.c_int32),
        ("tiles", ctypes.c_int32),
        ("stages", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("round_tiles", ctypes.c_int32),
        ("apart", ctypes.c_int32),
        ("early", ctypes.c_int32),
        ("inbox_at", ctypes.c_int32),
        ("parts_at", ctypes.c_int32),
        ("stages_at", ctypes.c_int32),
        ("pairs", ctypes.c_int32),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What a launch may choose; None: what `layout.build_for` says.

    Attributes:
        cluster, slices, groups, askers: of `Build`.
        clusters: of the launch, as many as run at once if None.
        early: stages (of 16 rows) of a block that are asked for before the launch before has ended; all if None.
    """

    cluster: int | None = None
    slices: int | None = None
    groups: int | None = None
    askers: int | None = None
    clusters: int | None = None
    early: int | None = None

    def applied(self, build: Build) -> Build:
        """The build with what was chosen."""
        names = ("cluster", "slices", "groups", "askers")
        chosen = {name: getattr(self, name) for name in names}
        return replace(build, **{name: value for name, value in chosen.items() if value is not None})


def refusal(x_TC: Tensor, weights: Sequence[Tensor]) -> str | None:
    """Why `run` does not take these tensors, in one sentence, or None; builds the kernel on the first call."""
    reason = shape_refusal(x_TC, weights)
    if reason is not None:
        return reason
    if not x_TC.is_cuda:
        return f"rows on {x_TC.device}: the kernel runs on a GPU"
    if torch.cuda.get_device_capability(x_TC.device) != (9, 0):
        return "the kernel needs compute capability 9.0: its copies, its clusters and its launches that overlap"
    if not is_available():
        return "neither NVRTC nor nvcc was found to build the kernel with"
    build = build_for(x_TC.shape[1], x_TC.shape[0])
    assert build is not None, "asked by `shape_refusal`"
    loaded, reason = _loaded_or_refusal(build, x_TC.device.index)
    if loaded is None:
        return reason
    if cut_for(build, num_tiles(weights), loaded.clusters) is None:
        return f"rows of {x_TC.shape[1]} columns do not fit in shared memory"
    return None


def shape_refusal(x_TC: Tensor, weights: Sequence[Tensor]) -> str | None:
    """Why the kernel does not take tensors of these shapes and places, wherever it would run, or None."""
    if x_TC.dtype != torch.bfloat16:
        return f"rows of {x_TC.dtype}: the kernel takes bf16"
    if build_for(x_TC.shape[1], x_TC.shape[0]) is None:
        return (
            f"rows of shape {tuple(x_TC.shape)}: the kernel takes 1 to {TOKENS[-1]}, of columns in eights, not too many"
        )
    if any(part.data_ptr() % 16 for part in (x_TC, *weights)):
        return "rows or matrices that do not begin at a multiple of 16 bytes"
    if sum(weight.shape[0] for weight in weights) > _MOST_OUTPUTS:
        return f"more than {_MOST_OUTPUTS} outputs"
    return None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A kernel, and how many clusters of it a device runs at once."""

    kernel: Kernel
    clusters: int


@cache
def _loaded_or_refusal(build: Build, device: int) -> tuple[_Loaded | None, str | None]:
    """The loaded kernel, or why there is none; either is kept for the life of the process."""
    try:
        with torch.cuda.device(device):
            make_current(device)
            kernel = Kernel(cubin(build), "thermoe_linear", shared_bytes=SHARED_BYTES)
            clusters = kernel.clusters_at_once(build.cluster, build.threads)
    except (CudaUnavailableError, OSError) as err:
        return None, str(err)
    return _Loaded(kernel, max(clusters, 1)), None


def cubin(build: Build) -> bytes:
    """Machine code for capability 9.0, built on the first call of a user and kept.

    Raises:
        CudaUnavailableError: no compiler was found, or it refused the source.
    """
    return compile_source(build.source(), "thermoe_linear.cu", (9, 0), include=SOURCES)


def num_tiles(weights: Sequence[Tensor]) -> int:
    """Of 8 outputs, the last one perhaps of fewer."""
    return -(-sum(weight.shape[0] for weight in weights) // _TILE)


def fill(
    cut: Cut,
    x_TC: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    out_TN: Tensor,
    early: int | None,
) -> Problem:
    """The kernel's one parameter."""
    problem = Problem(x=x_TC.data_ptr(), out=out_TN.data_ptr(), tokens=x_TC.shape[0], tiles=num_tiles(weights))
    end = 0
    for i in range(_MATRICES):
        if i < len(weights):
            end += weights[i].shape[0]
            problem.weight[i] = weights[i].data_ptr()
        bias = biases[i] if i < len(biases) else None
        problem.bias[i] = None if bias is None else bias.data_ptr()
        problem.ends[i] = end
    for name in _CUT_FIELDS:
        setattr(problem, name, int(getattr(cut, name)))
    problem.early = _MOST_OUTPUTS if early is None else early
    problem.pairs = end % 2 == 0 and out_TN.data_ptr() % 4 == 0
    return problem


def run(
    x_TC: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    out_TN: Tensor,
    *,
    tuning: Tuning | None = None,
    overlaps: bool = True,
) -> None:
    """Write the products of the rows with all matrices, side by side, into `out_TN`.

    Args:
        x_TC: (T, C) bf16, contiguous, for which `refusal` said None.
        weights: one to three (N_i, C), contiguous, older than the launch before this one.
        biases: (N_i,) or None for each, or empty.
        out_TN: (T, N), contiguous.
        tuning: what was measured to be best if None.
        overlaps: whether it begins before the launch before it has ended.

    Raises:
        ConfigError: `refusal` would have given a reason.
        CudaUnavailableError: the driver refused the launch.
    """
    tuning, device = tuning or Tuning(), x_TC.device
    reason = shape_refusal(x_TC, weights)
    build = build_for(x_TC.shape[1], x_TC.shape[0])
    if build is None or reason is not None:
        raise ConfigError(f"the linear kernel cannot take {reason}")
    build = tuning.applied(build)
    loaded, reason = _loaded_or_refusal(build, device.index)
    if loaded is None:
        raise ConfigError(f"the linear kernel could not be built: {reason}")
    tiles = num_tiles(weights)
    if tiles == 0:
        return
    clusters = min(tuning.clusters or loaded.clusters, tiles)
    cut = cut_for(build, tiles, clusters)
    if cut is None:
        raise ConfigError(f"the linear kernel cannot take rows of {x_TC.shape[1]} columns: they fill shared memory")
    problem = fill(cut, x_TC, weights, biases, out_TN, tuning.early)
    with torch.cuda.device(device):
        make_current(device.index)
        loaded.kernel.launch(
            problem,
            blocks=clusters * build.cluster,
            threads=build.threads,
            stream=torch.cuda.current_stream(device).cuda_stream,
            overlaps=overlaps,
            shared_bytes=cut.shared_bytes,
        )
