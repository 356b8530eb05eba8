"""CUDA C++ compiled on the spot, kept, loaded and launched, with what torch and the NVIDIA driver bring."""

from functools import cache

from thermoe.kernels.cuda_build.compiler import compile_source, compiler_name, device_files, has_compiler
from thermoe.kernels.cuda_build.counter_words import counters
from thermoe.kernels.cuda_build.driver import (
    CudaUnavailableError,
    Kernel,
    check,
    libcuda,
    make_current,
    outside_captures,
)

__all__ = [
    "CudaUnavailableError",
    "Kernel",
    "check",
    "compile_source",
    "compiler_name",
    "counters",
    "device_files",
    "has_compiler",
    "is_available",
    "libcuda",
    "make_current",
    "outside_captures",
]


@cache
def is_available() -> bool:
    """Whether kernels can be built and launched here; never raises."""
    try:
        libcuda()
    except CudaUnavailableError:
        return False
    return has_compiler()
