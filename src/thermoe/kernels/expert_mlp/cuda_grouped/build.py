"""The grouped kernel's machine code for one cut of the work."""

from dataclasses import dataclass
from pathlib import Path

from thermoe.kernels.cuda_build import compile_source

SOURCES = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """What is compiled into a kernel.

    Attributes:
        activation: its number in layout.cuh.
        eight: e4m3 operands instead of bf16.
        tokens: most places of the plan in a tile, a multiple of 16.
        stages: steps of operands in shared memory.
        lead: steps that one warpgroup is ahead of the other.
        pair: two blocks (a cluster) take neighbouring tiles of an expert and bring each other half of the weights.
        planes: planes of integer codes instead of bf16, 0: none.
        nested: each expert has a precision of its own.
        ahead: stages by which weights are asked into the L2 cache before they are copied, 0: they are not.
        keep: what the L2 cache is told: 1: weights go first, 2: outputs go first, 3: both.
    """

    activation: int = 0
    eight: bool = False
    tokens: int = 160
    stages: int = 4
    lead: int = 2
    pair: bool = True
    planes: int = 0
    nested: bool = False
    ahead: int = 0
    keep: int = 0

    def source(self) -> str:
        """The whole translation unit; it includes the files of `SOURCES`."""
        names = ("activation", "eight", "tokens", "stages", "lead", "pair", "planes", "nested", "ahead", "keep")
        values = {name: int(getattr(self, name)) for name in names}
        macros = "".join(f"#define THERMOE_{name.upper()} {value}\n" for name, value in values.items())
        products = "".join(self._product(width) for width in range(8, self.tokens + 1, 8))
        return f'{macros}#include "finish.cuh"\n{products}#include "grouped.cu"\n'

    def _product(self, width: int) -> str:
        """The instruction of one width, whose sums are as many operands as it has columns halved."""
        count = width // 2
        sums = ", ".join(f"%{i}" for i in range(count))
        outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
        shape = f"wgmma.mma_async.sync.aligned.m64n{width}{'k32.f32.e4m3.e4m3' if self.eight else 'k16.f32.bf16.bf16'}"
        if self.planes:
            left = ", ".join(f"%{count + i}" for i in range(4))
            return f"""
template <>
struct Product<{width}> {{
  static DEV void add(float (&d)[VALUES], const uint32_t (&a)[4], uint64_t b, int keep) {{
    asm volatile(
        "{{.reg .pred p; setp.ne.b32 p, %{count + 5}, 0;"
        "{shape} {{{sums}}}, {{{left}}}, %{count + 4}, p, 1, 1, 0;}}"
        : {outputs} : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
  }}
}};
"""
        return f"""
template <>
struct Product<{width}> {{
  static DEV void add(float (&d)[VALUES], uint64_t a, uint64_t b, int keep) {{
    asm volatile(
        "{{.reg .pred p; setp.ne.b32 p, %{count + 2}, 0;"
        "{shape} {{{sums}}}, %{count}, %{count + 1}, p, {"1, 1" if self.eight else "1, 1, 0, 0"};}}"
        : {outputs} : "l"(a), "l"(b), "r"(keep));
  }}
}};
"""


def cubin(build: Build) -> bytes:
    """Machine code for capability 9.0, built on the first call of a user and kept.

    Raises:
        CudaUnavailableError: no compiler was found, or it refused the source.
    """
    return compile_source(build.source(), "thermoe_grouped.cu", (9, 0), include=SOURCES, specific=True)
