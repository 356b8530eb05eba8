"""The router's logits and the routing in one launch, for the few rows of a decode step.

Shapes: T tokens, D model width, E experts, K slots per token.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
from torch import Tensor

from thermoe.kernels.cuda_build import Kernel, compile_source, device_files, is_available, make_current
from thermoe.kernels.route import cuda
from thermoe.kernels.route.cuda import Layout, Shape

_MOST_TOKENS, _BANDS, _CHUNK = 16, 4, 32  # of rows.cu
_MOST_REGISTERS = 64  # of a thread, that hold weights
_BLOCKS, _WARPS = 8, 8
_DEVICE = cuda.DEVICE + device_files("global_memory", "products")
_PARTS = ("inputs.cuh", "token.cuh", "batch.cuh", "cluster.cu", "rows.cu")


class _Arguments(ctypes.Structure):
    """`RowsArgs` of rows.cu."""

    _fields_ = (
        ("route", cuda.Arguments),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "logits")),
    )


@dataclass(frozen=True, slots=True)
class RowsShape:
    """What a launch is compiled for: the routing, columns of the weights and tokens of a block."""

    route: Shape
    columns: int
    held: int

    def macros(self) -> str:
        """The definitions at the head of the source."""
        own = f"#define LOGITS_COME_FROM_ROWS 1\n#define COLUMNS {self.columns}\n#define HELD {self.held}\n"
        return self.route.macros() + own


def supports(x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, top_k: int, groups: int) -> bool:
    """Whether `run` takes this forward; needs compute capability 9.0 and a CUDA compiler."""
    (num_tokens, width), num_experts = x_TD.shape, weight_ED.shape[0]
    given = [x_TD, weight_ED] + ([] if bias_E is None else [bias_E])
    if not x_TD.is_cuda or any(t.dtype != torch.bfloat16 or not t.is_contiguous() for t in given):
        return False
    if x_TD.data_ptr() % 16 or weight_ED.data_ptr() % 16 or not 0 < num_tokens <= _MOST_TOKENS:
        return False
    if top_k > 16 or groups > 32 or not fits(num_experts, width):
        return False
    return torch.cuda.get_device_capability(x_TD.device) == (9, 0) and is_available()


def fits(num_experts: int, width: int) -> bool:
    """Whether a block holds its part of the router's weights in registers, in whole tiles."""
    each = width // (_BLOCKS * (_WARPS // _BANDS))  # columns of a warp
    if num_experts not in (32, 64, 128) or width % (_BLOCKS * (_WARPS // _BANDS) * _CHUNK):
        return False
    return num_experts // 32 * (each // _CHUNK) * 4 <= _MOST_REGISTERS


def run(
    x_TD: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor | None,
    knob_row: Tensor,
    correction_E: Tensor | None,
    live_T: Tensor | None,
    sums: Tensor | None,
    top_k: int,
    flags: list[int],
    scale: float,
    logits_TE: Tensor,
    out: tuple[Tensor, ...],
) -> None:
    """Write logits and the routing (see `launch.outputs`), on the current stream."""
    device, layout = x_TD.device, Layout(_WARPS, _BLOCKS, 1, cluster=True)
    kernel = _kernel(shape_of(x_TD, logits_TE, knob_row, correction_E, top_k, flags, layout), device.index)
    arguments = arguments_of(
        (x_TD, weight_ED, bias_E, logits_TE),
        (knob_row, correction_E, live_T, *out[:7], sums, out[7]),
        flags,
        scale,
        layout,
    )
    with torch.cuda.device(device):
        make_current(device.index)
        stream = torch.cuda.current_stream().cuda_stream
        kernel.launch(arguments, blocks=layout.blocks, threads=32 * layout.warps, stream=stream, overlaps=True)


def shape_of(
    x_TD: Tensor, logits_TE: Tensor, knob_row: Tensor, correction_E: Tensor | None, top_k: int, flags: list[int],
    layout: Layout,
) -> RowsShape:  # fmt: skip
    """What has to be compiled for this forward; blocks hold a power of two of tokens."""
    route = cuda.shape_of(logits_TE, knob_row, correction_E, top_k, flags, layout)
    held = 1
    while held * layout.blocks < x_TD.shape[0]:
        held *= 2
    return RowsShape(route, x_TD.shape[1], held)


def arguments_of(
    linear: tuple[Tensor | None, ...],
    routing: tuple[Tensor | None, ...],
    flags: list[int],
    scale: float,
    layout: Layout,
) -> ctypes.Structure:
    """The structure that the kernel takes: of the rows, weights, bias and logits, and of the routing but its logits."""
    pointers = (None if t is None else t.data_ptr() for t in linear)
    route = cuda.arguments_of((linear[3], *routing, None), flags, scale, layout)
    return _Arguments(route, *pointers)


def source(shape: RowsShape, device: str | None = None) -> str:
    """The whole source of one kernel; `device` stands in for the files of the folder `device`."""
    here = resources.files("thermoe.kernels.route.cuda")
    parts = [here.joinpath(name).read_text().replace("#pragma once\n", "") for name in _PARTS]
    return "".join([shape.macros(), _DEVICE if device is None else device, *parts])


@cache
def _kernel(shape: RowsShape, device: int) -> Kernel:
    code = compile_source(source(shape), "route_rows.cu", torch.cuda.get_device_capability(device))
    return Kernel(code, "route_rows")
