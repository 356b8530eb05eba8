"""The CUDA source of the attention, compiled for the CPU with the fibers of `cuda_on_cpu/device.cuh`."""

import ctypes
from pathlib import Path

import torch
from on_cpu import FAILED, cpu_library
from torch import Tensor

from thermoe.kernels.decode_attention import cuda
from thermoe.kernels.decode_attention.cuda import Layout, Shape

DEVICE = '#include "device.cuh"\n#include "tiles.h"\n'
RUN = """
extern "C" int run(const void* given, unsigned heads, unsigned seed, const void* made, void* qkv, size_t bytes) {
    const auto a = cpu::launched_with<AttentionArgs>(given);
    cpu::launch_before = [=] { std::memcpy(qkv, made, bytes); };
    for (unsigned h = 0; h < heads; ++h) {
        cpu::seed = seed + h, cpu::first_block = h * CLUSTER;
        std::memset(qkv, 0xff, bytes);
        if (!cpu::launch(CLUSTER, 32 * WARPS, sizeof(Shared), [&a] { decode_attention(a); })) return 1;
    }
    return 0;
}
extern "C" unsigned argument_bytes() { return sizeof(AttentionArgs); }
"""


class AttentionEmulator:
    """Builds each kernel once and runs it on CPU tensors, one key head after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: dict[Shape, ctypes.CDLL] = {}

    def run(
        self, layout: Layout, given: tuple[Tensor, ...], *, num_heads: int, scale: float, norms=None, seed: int = 1
    ):
        """As `decode_attention`; the projections are NaN until the kernel waits for them."""
        qkv, _, _, keys, values, _, mask = given
        batch, groups, length, _ = keys.shape
        out = torch.full((batch, num_heads * 128), float("nan"), dtype=qkv.dtype)
        later = qkv.clone()
        arguments = cuda.arguments_of((later, *given[1:], out), scale, norms)
        arguments.keys[:2] = keys.data_ptr(), length
        arguments.values[:2] = values.data_ptr(), length
        kernel = self.kernel(cuda.shape_of(num_heads // groups, mask, norms, layout))
        assert kernel.argument_bytes() == ctypes.sizeof(arguments)
        pointers = ctypes.c_void_p(qkv.data_ptr()), ctypes.c_void_p(later.data_ptr())
        size = ctypes.c_size_t(2 * qkv.numel())
        assert kernel.run(ctypes.byref(arguments), batch * groups, seed, *pointers, size) == 0, FAILED
        return out

    def kernel(self, shape: Shape) -> ctypes.CDLL:
        """The library that runs kernels of this shape."""
        if shape not in self.built:
            library = self.folder / f"attention_{len(self.built)}.so"
            text = cuda.source(shape, DEVICE) + RUN
            self.built[shape] = cpu_library(text, library)
        return self.built[shape]
