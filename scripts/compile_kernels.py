"""`python scripts/compile_kernels.py`: compile every kernel for GPUs that are not here and hold it to its bounds.

Each launch is made as on a GPU, with tensors that have no memory, and caught before it starts; what it would have
compiled is compiled for sm_80, sm_90 and sm_100. A kernel beyond its bounds on registers, stack (spilled registers lie
there) or shared memory in compile_bounds.json is one line on the standard error and exit code 1. `--write` raises
bounds to what was found: run it once with each supported version of Triton after a kernel was changed on purpose.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from kernel_calls import calls
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from thermoe.kernels.cuda_build import CudaUnavailableError

BOUNDS = Path(__file__).with_name("compile_bounds.json")
ARCHITECTURES = (80, 90, 100)
TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What a kernel takes: registers of a thread, bytes of its stack and of the shared memory of its block."""

    registers: int
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class Launch:
    """A caught launch of a Triton kernel."""

    function: Any
    arguments: dict[str, Any]
    options: dict[str, Any]

    def compile(self, architecture: int) -> Usage:
        """Compile as Triton's own launcher would have it."""
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.function.params):
            value = self.arguments.get(parameter.name)
            kind = "constexpr" if parameter.is_constexpr else argument_type(value)
            signature[parameter.name] = kind
            if kind == "constexpr":
                constants[parameter.name] = value
            elif isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                attributes[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.function, signature, constexprs=constants, attrs=attributes)
        done = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=self.options)
        return usage_of(done.asm["cubin"], shared_bytes=done.metadata.shared)


def argument_type(value: Any) -> str:
    """The name by which Triton's signatures know the type of an argument."""
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, float):
        return "fp32"
    return "constexpr" if value is None or value == 1 else "i32"


def usage_of(cubin: bytes, shared_bytes: int = 0) -> Usage:
    """Read machine code with the tool that Triton brings; `shared_bytes` are those given at the launch."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = [
        Usage(int(registers), int(stack) + int(local), int(shared) + shared_bytes)
        for registers, stack, shared, local in re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    ]
    return max(found, key=lambda usage: usage.registers)


@contextmanager
def caught_launches() -> Iterator[list[Launch]]:
    """Launches of Triton kernels in the block, none of which happens."""
    launches: list[Launch] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        arguments = dict(zip(self.arg_names, args, strict=False))
        options = {name: value for name, value in kwargs.items() if name not in self.arg_names}
        arguments |= {name: value for name, value in kwargs.items() if name in self.arg_names}
        launches.append(Launch(self, arguments, options))

    original = JITFunction.run
    JITFunction.run = run
    try:
        yield launches
    finally:
        JITFunction.run = original


def compile_call(architecture: int, name: str) -> dict[str, Usage]:
    """Every kernel of one call, by the number and name of its launch."""
    call: Callable[[], Any] = calls(architecture)[name]
    with caught_launches() as launches:
        built = call()
    if isinstance(built, bytes):
        return {name: usage_of(built)}
    return {
        f"{name} / {number} {launch.function.__name__}": launch.compile(architecture)
        for number, launch in enumerate(launches)
    }


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one call on one architecture: figures by kernel, or why there are none."""

    architecture: int
    found: dict[str, Usage]
    skipped: str = ""
    failed: str = ""


def outcome_of(job: tuple[int, str]) -> Outcome:
    """Compile the kernels of a call; a missing CUDA compiler skips it, anything else that goes wrong fails it."""
    architecture, name = job
    try:
        return Outcome(architecture, compile_call(*job))
    except Exception as err:  # noqa: BLE001 - one line for each call, whatever its compiler raised
        reason = (str(err).splitlines() or [type(err).__name__])[-1]
        if isinstance(err, CudaUnavailableError) and "no CUDA compiler" in reason:
            return Outcome(architecture, {}, skipped=f"skipped {name}: {reason}")
        return Outcome(architecture, {}, failed=f"sm_{architecture} {name}: does not compile: {reason}")


def violations(found: dict[str, Usage], bounds: dict[str, dict[str, int]], architecture: int) -> list[str]:
    """A line for each figure beyond its bound and for each kernel without bounds."""
    lines = []
    for name, usage in found.items():
        if name not in bounds:
            lines.append(f"sm_{architecture} {name}: no bounds; check {asdict(usage)} and run with --write")
            continue
        lines += [
            f"sm_{architecture} {name}: {figure} {value}, the bound is {bounds[name][figure]}"
            for figure, value in asdict(usage).items()
            if value > bounds[name][figure]
        ]
    return lines


def raised(found: dict[str, Usage], bounds: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Bounds that hold for what was found: registers in eights, as they are handed out; bounds of others kept."""
    merged = dict(bounds)
    for name, usage in found.items():
        got = asdict(usage) | {"registers": min(255, -(-usage.registers // 8) * 8)}
        merged[name] = {figure: max(value, bounds.get(name, {}).get(figure, 0)) for figure, value in got.items()}
    return dict(sorted(merged.items()))


def main() -> int:
    """Compile, compare, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile")
    parser.add_argument("--only", default="", help="calls whose name holds this")
    parser.add_argument("--write", action="store_true", help="raise the bounds to what is found")
    options = parser.parse_args()
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as ever; unset, each process warns
    start_s = time.monotonic()
    jobs = [(cc, name) for cc in ARCHITECTURES for name in calls(cc) if options.only in name]
    figures: dict[int, dict[str, Usage]] = {cc: {} for cc in ARCHITECTURES}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        outcomes = list(pool.map(outcome_of, jobs))
    for outcome in outcomes:
        figures[outcome.architecture] |= outcome.found
        if outcome.skipped:
            print(outcome.skipped)
    bounds = json.loads(BOUNDS.read_text()) if BOUNDS.is_file() else {}
    if options.write:
        bounds = {f"sm_{cc}": raised(figures[cc], bounds.get(f"sm_{cc}", {})) for cc in ARCHITECTURES}
        BOUNDS.write_text(json.dumps(bounds, indent=1) + "\n")
    lines = [outcome.failed for outcome in outcomes if outcome.failed]
    lines += [line for cc in ARCHITECTURES for line in violations(figures[cc], bounds.get(f"sm_{cc}", {}), cc)]
    for line in lines:
        print(line, file=sys.stderr)
    count = sum(map(len, figures.values()))
    print(f"{count} kernels, Triton {triton.__version__}, {len(lines)} complaints, {time.monotonic() - start_s:.0f} s")
    return 1 if lines or not count else 0


if __name__ == "__main__":
    sys.exit(main())
