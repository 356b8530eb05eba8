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
        planes: codes of 4 bits in two planes instead of bf16; each block for itself.
        ahead: steps by which weights are asked into the L2 cache before they are copied, 0: they are not; with planes
            whether the codes of tiles known ahead are.
    """

    activation: int = 0
    eight: bool = False
    tokens: int = 160
    stages: int = 4
    lead: int = 2
    pair: bool = True
    planes: bool = False
    ahead: int = 0

    @property
    def threads(self) -> int:
        """Of a block: warps that bring operands, those that widen codes, those that multiply."""
        return 512 if self.planes else 384

    def source(self) -> str:
        """The whole translation unit; it includes the files of `SOURCES`."""
        names = ("activation", "eight", "tokens", "stages", "lead", "pair", "planes", "ahead")
        values = {name: int(getattr(self, name)) for name in names}
        macros = "".join(f"#define THERMOE_{name.upper()} {value}\n" for name, value in values.items())
        products = "".join(_product(width, eight=self.eight) for width in range(8, self.tokens + 1, 8))
        return f'{macros}#include "finish.cuh"\n{products}#include "grouped.cu"\n'


def cubin(build: Build) -> bytes:
    """Machine code for capability 9.0, built on the first call of a user and kept.

    Raises:
        CudaUnavailableError: no compiler was found, or it refused the source.
    """
    return compile_source(build.source(), "thermoe_grouped.cu", (9, 0), include=SOURCES, specific=True)


def _product(width: int, *, eight: bool) -> str:
    """The instruction of one width, whose sums are as many operands as it has columns halved."""
    count = width // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    kind, tail = ("k32.f32.e4m3.e4m3", "1, 1") if eight else ("k16.f32.bf16.bf16", "1, 1, 0, 0")
    return f"""
template <>
struct Product<{width}> {{
  static DEV void add(float (&d)[VALUES], uint64_t a, uint64_t b, int keep) {{
    asm volatile(
        "{{.reg .pred p; setp.ne.b32 p, %{count + 2}, 0;"
        "wgmma.mma_async.sync.aligned.m64n{width}{kind} {{{sums}}}, %{count}, %{count + 1}, p, {tail};}}"
        : {outputs} : "l"(a), "l"(b), "r"(keep));
  }}
}};
"""
