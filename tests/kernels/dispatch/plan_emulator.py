"""The CUDA source of the dispatch plan, compiled for the CPU with the fibers of `cuda_on_cpu/device.cuh`."""

import ctypes
from pathlib import Path

import torch
from on_cpu import FAILED, cpu_library
from torch import Tensor

from thermoe.kernels.dispatch import cuda
from thermoe.kernels.dispatch.cuda import Layout, Shape

DEVICE = '#define KERNEL dispatch_plan\n#include "device.cuh"\n'
RUN = """using RouteArgs = PlanArgs;
#include "run.cpp"
extern "C" unsigned workspace_bytes() { return sizeof(Workspace); }
"""


class PlanEmulator:
    """Builds each kernel once and runs it on CPU tensors; its workspaces live on, as on a device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: dict[Shape, ctypes.CDLL] = {}
        self.workspaces: dict[tuple[int, int], Tensor] = {}

    def run(self, layout: Layout, ids_TK: Tensor, weights_TK: Tensor, num_experts: int, seed: int = 1):
        """Slots and offsets, as `dispatch_plan_triton`."""
        slot_N = torch.full((ids_TK.numel(),), -7, dtype=torch.int32)
        offsets_E1 = torch.full((num_experts + 1,), -7, dtype=torch.int32)
        key = num_experts, layout.blocks
        if key not in self.workspaces:
            self.workspaces[key] = torch.zeros(cuda.workspace_bytes(*key), dtype=torch.uint8)
        workspace = self.workspaces[key] if layout.blocks > 1 else None
        kernel = self.kernel(cuda.shape_of(ids_TK, weights_TK, num_experts, layout))
        arguments = cuda.arguments_of((ids_TK, weights_TK, slot_N, offsets_E1, workspace))
        assert kernel.argument_bytes() == ctypes.sizeof(arguments)
        assert kernel.workspace_bytes() == self.workspaces[key].numel()
        assert kernel.run(ctypes.byref(arguments), layout.blocks, seed) == 0, FAILED
        return slot_N, offsets_E1

    def kernel(self, shape: Shape) -> ctypes.CDLL:
        """The library that runs kernels of this shape."""
        if shape not in self.built:
            library = self.folder / f"plan_{len(self.built)}.so"
            text = cuda.source(shape, DEVICE) + RUN
            self.built[shape] = cpu_library(text, library)
        return self.built[shape]
