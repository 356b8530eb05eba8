"""Routing in CUDA C++: one launch for any batch, a warp for each token.

Few tokens go to one block, or to a cluster whose blocks send each other words of shared memory; more tokens fill a grid
whose blocks are all resident and meet in device memory. Shapes: T tokens, E experts, K slots per token.
"""

import ctypes
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.route.cuda.driver import Kernel, compile_source, device_files, is_available

_POINTERS = (
    *("logits", "knobs", "correction", "live", "ids", "weights", "kept", "own_ids", "loaded"),
    *("slots", "offsets", "sums", "last", "workspace"),
)
DEVICE = "#define THERMOE_CLUSTER CLUSTER\n" + device_files("arithmetic", "inboxes", "launches", "threads", "words")
_PARTS = ("inputs.cuh", "token.cuh", "batch.cuh")
_MAX_STEPS = 16
_MAX_BLOCKS = 256  # PLACES of grid.cu
_LOGITS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Arguments(ctypes.Structure):
    """`RouteArgs` of inputs.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("stride", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in ("tokens", "live_kind", "joint", "steps")),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """What a launch is compiled for: see inputs.cuh."""

    experts: int
    top_k: int
    logits: int
    sigmoid: int
    corrected: int
    renormalise: int
    groups: int
    kept_groups: int
    aligned: int
    warps: int
    cluster: int
    steps: int

    def macros(self) -> str:
        """The definitions at the head of the source."""
        return "".join(f"#define {f.name.upper()} {getattr(self, f.name)}\n" for f in fields(self))


@dataclass(frozen=True, slots=True)
class Layout:
    """How tokens are spread: `warps` a block, `blocks`, `steps` tokens a warp; one cluster of at most 255 or a grid."""

    warps: int
    blocks: int
    steps: int
    cluster: bool


# Most tokens, warps and blocks of a cluster (8 at most everywhere): the fastest measured on an H200, 128 experts.
_CLUSTERS = ((4, 4, 1), (8, 8, 1), (16, 4, 4), (32, 8, 4), (64, 8, 8), (128, 16, 8))


def layout_for(num_tokens: int, num_experts: int, processors: int) -> Layout | None:
    """The spread of a batch over a GPU with clusters; None where it is too large."""
    for most, warps, blocks in _CLUSTERS:
        if num_tokens <= most and (num_experts <= 128 or warps * blocks <= 64):  # shared memory
            return Layout(warps, blocks, 1, cluster=True)
    widest, processors = 32 if num_experts <= 128 else 16, min(processors, _MAX_BLOCKS)
    warps = 8 if num_tokens <= 4 * processors else 16 if num_tokens <= 16 * processors else widest
    steps = -(-num_tokens // (warps * processors))
    if steps > _MAX_STEPS or num_tokens > 65535:
        return None
    return Layout(warps, -(-num_tokens // (warps * steps)), steps, cluster=False)


def supports(logits_TE: Tensor, top_k: int, groups: int, columns: int) -> bool:
    """Whether this forward can be routed here; needs compute capability 9.0 and NVRTC."""
    num_tokens, num_experts = logits_TE.shape
    if not logits_TE.is_cuda or logits_TE.dtype not in _LOGITS or columns != 1 or top_k > 16 or num_experts > 256:
        return False
    if groups > 1 and (num_experts not in (32, 64, 128, 256) or groups > 32):  # a group is some whole lanes
        return False
    properties = torch.cuda.get_device_properties(logits_TE.device)
    if properties.major < 9 or not is_available():
        return False
    return layout_for(num_tokens, num_experts, properties.multi_processor_count) is not None


def run(
    logits_TE: Tensor,
    knob_row: Tensor,
    correction_E: Tensor | None,
    live_T: Tensor | None,
    sums: Tensor | None,
    top_k: int,
    flags: list[int],
    scale: float,
    out: tuple[Tensor, ...],
    layout: Layout | None = None,
) -> None:
    """Route into `out` (see `launch.outputs`), on the current stream; `layout` overrides the frozen choice."""
    (num_tokens, num_experts), device = logits_TE.shape, logits_TE.device
    if layout is None:
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        layout = layout_for(num_tokens, num_experts, processors)
    assert layout is not None, "asked by `supports`"
    kernel = _kernel(shape_of(logits_TE, knob_row, correction_E, top_k, flags, layout), layout.cluster, device.index)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        workspace = None if layout.cluster else _workspace_for(device.index, stream, num_experts, layout.steps > 1)
        arguments = arguments_of(
            (logits_TE, knob_row, correction_E, live_T, *out[:7], sums, out[7], workspace), flags, scale, layout
        )
        kernel.launch(
            arguments,
            blocks=layout.blocks,
            threads=32 * layout.warps,
            stream=stream,
            resident=not layout.cluster,
            overlaps=layout.cluster,
        )


def shape_of(
    logits_TE: Tensor, knob_row: Tensor, correction_E: Tensor | None, top_k: int, flags: list[int], layout: Layout
) -> Shape:
    """What has to be compiled for this forward."""
    sigmoid, groups, kept_groups, renormalise, _ = flags
    addresses = logits_TE.data_ptr() | knob_row.data_ptr() | (0 if correction_E is None else correction_E.data_ptr())
    return Shape(
        experts=logits_TE.shape[1],
        top_k=top_k,
        logits=_LOGITS[logits_TE.dtype],
        sigmoid=sigmoid,
        corrected=int(correction_E is not None),
        renormalise=renormalise,
        groups=groups,
        kept_groups=kept_groups,
        aligned=int(addresses % 16 == 0 and logits_TE.stride(0) % 8 == 0),
        warps=layout.warps,
        cluster=layout.blocks if layout.cluster else 1,
        steps=1 if layout.steps == 1 else _MAX_STEPS,
    )


def arguments_of(
    tensors: tuple[Tensor | None, ...], flags: list[int], scale: float, layout: Layout
) -> ctypes.Structure:
    """The structure that a kernel takes; `tensors` in the order of its pointers."""
    logits_TE, live_T = tensors[0], tensors[3]
    assert logits_TE is not None
    pointers = {n: None if t is None else t.data_ptr() for n, t in zip(_POINTERS, tensors, strict=True)}
    return Arguments(
        **pointers,
        stride=logits_TE.stride(0),
        tokens=logits_TE.shape[0],
        live_kind=0 if live_T is None else 1 if live_T.element_size() == 1 else 2,
        joint=flags[4],
        steps=layout.steps,
        scale=scale,
    )


def source(shape: Shape, cluster: bool, device: str | None = None) -> str:
    """The whole source of one kernel; `device` stands in for the files of the folder `device`."""
    here = resources.files(__package__)
    names = (*_PARTS, "cluster.cu") if cluster else (*_PARTS, "meeting.cuh", "grid.cu")
    parts = [here.joinpath(name).read_text().replace("#pragma once\n", "") for name in names]
    return "".join([shape.macros(), DEVICE if device is None else device, *parts])


def _workspace_for(device: int, stream: int, num_experts: int, stepped: bool) -> Tensor:
    """The stream's workspace. All captured graphs share one, which is made with the first launch outside a capture."""
    shared = _workspace(device, None, num_experts, stepped)
    capturing = torch.cuda.is_current_stream_capturing()
    return shared if capturing else _workspace(device, stream, num_experts, stepped)


@cache
def _kernel(shape: Shape, cluster: bool, device: int) -> Kernel:
    name = "route_cluster" if cluster else "route_grid"
    code = compile_source(source(shape, cluster), f"{name}.cu", torch.cuda.get_device_capability(device))
    return Kernel(code, name)


def workspace_bytes(num_experts: int, *, stepped: bool) -> int:
    """Size of `Workspace` in grid.cu; `stepped` where warps take more than one token."""
    padded = max(32, 1 << (num_experts - 1).bit_length())
    row_bytes = max(128, padded) * (2 if stepped else 1)
    return 16 + 2 * (12 * padded + 16) + _MAX_BLOCKS * (padded // 4 + row_bytes)


@cache
def _workspace(device: int, stream: int | None, num_experts: int, stepped: bool) -> Tensor:
    """Where the blocks of a grid meet: one for each stream, since two launches at a time must not share it."""
    if torch.cuda.is_current_stream_capturing():
        raise ConfigError("routing of a large batch is captured before it has run: run the step once, then capture it")
    return torch.zeros(workspace_bytes(num_experts, stepped=stepped), dtype=torch.uint8, device=f"cuda:{device}")
