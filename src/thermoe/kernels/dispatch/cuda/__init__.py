"""The dispatch plan in CUDA C++: one launch for up to a million slots, whose blocks are all resident and meet once.

Shapes: T tokens, K experts per token, N = T * K slots, E experts.
"""

import ctypes
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources

import torch
from torch import Tensor

from thermoe.kernels.cuda_build import Kernel, compile_source, device_files, is_available

_DEVICE = device_files("launches", "shared_memory", "threads", "words")
_POINTERS = ("ids", "weights", "slots", "offsets", "workspace")
_ID_BYTES, _WEIGHT_BYTES = (4, 8), (2, 4, 8)
_MAX_EXPERTS = 512
_WARPS = 16  # of one block among several
_BLOCKS, _STEPS = (4, 8, 16, 32, 64, 128), (1, 2, 4, 8, 16)


class _Arguments(ctypes.Structure):
    """`PlanArgs` of plan.cu."""

    _fields_ = (*((name, ctypes.c_void_p) for name in _POINTERS), ("num_slots", ctypes.c_int))


@dataclass(frozen=True, slots=True)
class Layout:
    """How slots are spread: `warps` a block, `blocks`, `steps` slots a thread."""

    warps: int
    blocks: int
    steps: int

    @property
    def capacity(self) -> int:
        """Most slots."""
        return 32 * self.warps * self.blocks * self.steps


@dataclass(frozen=True, slots=True)
class Shape:
    """What a launch is compiled for: see plan.cu."""

    experts: int
    id_bytes: int
    weight_bytes: int
    warps: int
    blocks: int
    steps: int

    def macros(self) -> str:
        """The definitions at the head of the source."""
        return "".join(f"#define {f.name.upper()} {getattr(self, f.name)}\n" for f in fields(self))


def layout_for(num_slots: int, processors: int) -> Layout | None:
    """The spread of the slots over a GPU; None where there are too many.

    Numbers of blocks are few and fixed, for each has a workspace of its own: blocks without slots cost little.
    """
    few = (Layout(warps, 1, 1) for warps in (4, 16, 32))
    blocks = [count for count in _BLOCKS if count <= processors]
    many = (Layout(_WARPS, count, 1) for count in blocks)
    most = (Layout(_WARPS, blocks[-1], steps) for steps in _STEPS if blocks)
    return next((layout for layout in (*few, *many, *most) if layout.capacity >= num_slots), None)


def supports(ids_TK: Tensor, weights_TK: Tensor, num_experts: int) -> bool:
    """Whether this plan can be made here; needs compute capability 8.0 and NVRTC."""
    if not ids_TK.is_cuda or num_experts > _MAX_EXPERTS:
        return False
    if ids_TK.element_size() not in _ID_BYTES or weights_TK.element_size() not in _WEIGHT_BYTES:
        return False
    properties = torch.cuda.get_device_properties(ids_TK.device)
    if properties.major < 8 or not is_available():
        return False
    return layout_for(ids_TK.numel(), properties.multi_processor_count) is not None


def run(ids_TK: Tensor, weights_TK: Tensor, slot_N: Tensor, offsets_E1: Tensor, layout: Layout | None = None) -> None:
    """Write the plan on the current stream; the inputs are contiguous, `layout` overrides the frozen choice."""
    device, num_experts = ids_TK.device, offsets_E1.numel() - 1
    if layout is None:
        layout = layout_for(ids_TK.numel(), torch.cuda.get_device_properties(device).multi_processor_count)
    assert layout is not None, "asked by `supports`"
    kernel = _kernel(shape_of(ids_TK, weights_TK, num_experts, layout), device.index)
    with torch.cuda.device(device):
        stream, resident = torch.cuda.current_stream().cuda_stream, layout.blocks > 1
        workspace = _workspace_for(device.index, stream, num_experts, layout.blocks) if resident else None
        arguments = arguments_of((ids_TK, weights_TK, slot_N, offsets_E1, workspace))
        kernel.launch(arguments, blocks=layout.blocks, threads=32 * layout.warps, stream=stream, resident=resident)


def shape_of(ids_TK: Tensor, weights_TK: Tensor, num_experts: int, layout: Layout) -> Shape:
    """What has to be compiled for this plan."""
    sizes = ids_TK.element_size(), weights_TK.element_size()
    return Shape(num_experts, *sizes, warps=layout.warps, blocks=layout.blocks, steps=layout.steps)


def arguments_of(tensors: tuple[Tensor | None, ...]) -> ctypes.Structure:
    """The structure that the kernel takes; `tensors` in the order of its pointers."""
    assert tensors[0] is not None
    pointers = {n: None if t is None else t.data_ptr() for n, t in zip(_POINTERS, tensors, strict=True)}
    return _Arguments(**pointers, num_slots=tensors[0].numel())


def source(shape: Shape, device: str | None = None) -> str:
    """The whole source of one kernel; `device` stands in for the files of the folder `device`."""
    kernel = resources.files(__package__).joinpath("plan.cu").read_text()
    return shape.macros() + (_DEVICE if device is None else device) + kernel


def workspace_bytes(num_experts: int, blocks: int) -> int:
    """Size of `Workspace` in plan.cu."""
    return 16 + 2 * blocks * (-(-num_experts // 32) * 32)


@cache
def _kernel(shape: Shape, device: int) -> Kernel:
    code = compile_source(source(shape), "dispatch_plan.cu", torch.cuda.get_device_capability(device))
    return Kernel(code, "dispatch_plan")


_workspaces: dict[tuple[int, int | None, int, int], Tensor] = {}


def _workspace_for(device: int, stream: int, num_experts: int, blocks: int) -> Tensor:
    """The stream's workspace, which two launches at a time must not share; all captured graphs share one.

    A graph captured before anything has run outside captures gets a workspace of its own, which it clears itself.
    """
    capturing = torch.cuda.is_current_stream_capturing()
    shared, own = (device, None, num_experts, blocks), (device, stream, num_experts, blocks)
    if capturing:
        return _workspaces[shared] if shared in _workspaces else _cleared(device, num_experts, blocks)
    for key in (shared, own):
        if key not in _workspaces:
            _workspaces[key] = _cleared(device, num_experts, blocks)
    return _workspaces[own]


def _cleared(device: int, num_experts: int, blocks: int) -> Tensor:
    return torch.zeros(workspace_bytes(num_experts, blocks), dtype=torch.uint8, device=f"cuda:{device}")
