"""The CUDA sources of the routing, compiled for the CPU with the fibers of `cuda_on_cpu/device.cuh`."""

import ctypes
from pathlib import Path

import torch
from fused_cases import poisoned
from on_cpu import FAILED, cpu_library
from torch import Tensor

from thermoe.kernels.route import cuda
from thermoe.kernels.route.cuda import Layout, Shape
from thermoe.kernels.route.launch import Outputs


class Emulator:
    """Builds each kernel once and runs it on CPU tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: dict[tuple[Shape, bool], ctypes.CDLL] = {}
        self.workspaces: dict[tuple[int, bool], Tensor] = {}

    def run(
        self, layout: Layout, logits_TE: Tensor, knob_row: Tensor, correction_E: Tensor | None, live_T: Tensor | None,
        sums: Tensor | None, top_k: int, columns: int, flags: list[int], scale: float, *, seed: int = 1,
    ) -> Outputs:  # fmt: skip
        """As the custom op, on one batch."""
        assert columns == 1
        out = poisoned(logits_TE, top_k, 1)
        num_experts = logits_TE.shape[1]
        live_T = live_T.view(torch.uint8) if live_T is not None and live_T.element_size() == 1 else live_T
        stepped = layout.steps > 1
        if (num_experts, stepped) not in self.workspaces:
            size = cuda.workspace_bytes(num_experts, stepped=stepped)
            self.workspaces[num_experts, stepped] = torch.zeros(size, dtype=torch.uint8)
        workspace = None if layout.cluster else self.workspaces[num_experts, stepped]
        shape = cuda.shape_of(logits_TE, knob_row, correction_E, top_k, flags, layout)
        tensors = (logits_TE, knob_row, correction_E, live_T, *out[:7], sums, out[7], workspace)
        arguments = cuda.arguments_of(tensors, flags, scale, layout)
        kernel = self.kernel(shape, cluster=layout.cluster)
        assert kernel.argument_bytes() == ctypes.sizeof(arguments)
        assert layout.cluster or kernel.workspace_bytes() == workspace.numel()
        assert kernel.run(ctypes.byref(arguments), layout.blocks, seed) == 0, FAILED
        return out

    def kernel(self, shape: Shape, *, cluster: bool) -> ctypes.CDLL:
        if (shape, cluster) not in self.built:
            device = f'#define KERNEL route_{"cluster" if cluster else "grid"}\n#include "device.cuh"\n'
            size = "" if cluster else 'extern "C" unsigned workspace_bytes() { return sizeof(Workspace); }\n'
            source = cuda.source(shape, cluster, device) + '#include "run.cpp"\n' + size
            library = self.folder / f"kernel_{len(self.built)}.so"
            self.built[shape, cluster] = cpu_library(source, library)
        return self.built[shape, cluster]
