"""The CUDA source of the router in one launch, compiled for the CPU with the fibers of `cuda_on_cpu/device.cuh`."""

import ctypes
from pathlib import Path

import torch
from fused_cases import poisoned
from on_cpu import FAILED, cpu_library
from torch import Tensor

from thermoe.kernels.route.cuda import Layout, rows
from thermoe.kernels.route.cuda.rows import RowsShape
from thermoe.kernels.route.launch import Outputs

DEVICE = '#include "device.cuh"\n#include "tiles.h"\n'
RUN = """
extern "C" int run(const void* given, unsigned seed, const void* made, void* x, unsigned bytes) {
    cpu::launch_before = [=] { std::memcpy(x, made, bytes); };
    cpu::seed = seed;
    const auto a = cpu::launched_with<RowsArgs>(given);
    return cpu::launch(CLUSTER, 32 * WARPS, sizeof(RowsShared), [&a] { route_rows(a); }) ? 0 : 1;
}
extern "C" unsigned argument_bytes() { return sizeof(RowsArgs); }
"""


class RowsEmulator:
    """Builds each kernel once and runs it on CPU tensors; the rows are NaN until the kernel waits for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: dict[RowsShape, ctypes.CDLL] = {}

    def run(
        self, layout: Layout, linear: tuple[Tensor | None, ...], knob_row: Tensor, correction_E: Tensor | None,
        live_T: Tensor | None, sums: Tensor | None, top_k: int, flags: list[int], scale: float, *, seed: int = 1,
    ) -> tuple[Tensor, Outputs]:  # fmt: skip
        """As the custom op: the logits, and the rest."""
        x_TD, weight_ED, bias_E = linear
        later_TD = torch.full_like(x_TD, float("nan"))
        logits_TE = x_TD.new_full((x_TD.shape[0], weight_ED.shape[0]), float("nan"))
        out = poisoned(logits_TE, top_k, 1)
        live_T = live_T.view(torch.uint8) if live_T is not None and live_T.element_size() == 1 else live_T
        shape = rows.shape_of(x_TD, logits_TE, knob_row, correction_E, top_k, flags, layout)
        given = (later_TD, weight_ED, bias_E, logits_TE), (knob_row, correction_E, live_T, *out[:7], sums, out[7])
        arguments = rows.arguments_of(*given, flags, scale, layout)
        kernel = self.kernel(shape)
        assert kernel.argument_bytes() == ctypes.sizeof(arguments)
        pointers = ctypes.c_void_p(x_TD.data_ptr()), ctypes.c_void_p(later_TD.data_ptr())
        ended = kernel.run(ctypes.byref(arguments), seed, *pointers, 2 * x_TD.numel()) == 0
        assert ended, FAILED
        return logits_TE, out

    def kernel(self, shape: RowsShape) -> ctypes.CDLL:
        """The library that runs kernels of this shape."""
        if shape not in self.built:
            library = self.folder / f"rows_{len(self.built)}.so"
            text = rows.source(shape, DEVICE) + RUN
            self.built[shape] = cpu_library(text, library)
        return self.built[shape]
