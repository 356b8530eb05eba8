"""Work for `benchmarks.profiler_join`: expert MLPs in named ranges, some on two streams at once, with pauses between.

python benchmarks/profiler_join_work.py SECONDS; 0 runs everything once, for ncu.
"""

import sys
import time

import torch
from torch import Tensor
from torch.profiler import record_function

TOKENS, WIDTH, EXPERT_WIDTH = 16384, 2048, 4096
PAUSE_S, BURST = 0.15, 100


class Expert:
    """A SwiGLU expert whose three steps are ranges of their own."""

    def __init__(self, device: torch.device, dtype: torch.dtype, tokens: int) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        self._x = normal(tokens, WIDTH)
        self._up = normal(WIDTH, 2 * EXPERT_WIDTH) * WIDTH**-0.5
        self._down = normal(EXPERT_WIDTH, WIDTH) * EXPERT_WIDTH**-0.5

    def run(self) -> None:
        """Three kernels or more."""
        with record_function("op:linear_fc1"), _nvtx("op:linear_fc1"):
            gate, up = (self._x @ self._up).chunk(2, dim=-1)
        with record_function("op:activation"), _nvtx("op:activation"):
            hidden = torch.nn.functional.silu(gate) * up
        with record_function("op:linear_fc2"), _nvtx("op:linear_fc2"):
            hidden @ self._down


class _nvtx:  # noqa: N801  # used like a function
    """A range that nsys and ncu see; nothing without a GPU."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.nvtx.range_push(self._name)

    def __exit__(self, *error: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.nvtx.range_pop()


def main() -> None:
    """Bursts on one stream, then on two at once, then a pause, until the time is over."""
    seconds = float(sys.argv[1])
    on_gpu = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if on_gpu else (torch.device("cpu"), torch.float32)
    first, second = (Expert(device, dtype, TOKENS if on_gpu else 8) for _ in range(2))
    side = torch.cuda.Stream() if on_gpu else None
    until_s = time.monotonic() + seconds
    while True:
        for _ in range(BURST if seconds else 1):
            first.run()
        for _ in range(BURST // 2 if seconds and side is not None else 0):
            first.run()
            with torch.cuda.stream(side):
                second.run()
        if on_gpu:
            torch.cuda.synchronize()
        if time.monotonic() >= until_s:
            return
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
