"""CUDA C++ compiled on the spot and launched, through NVRTC and the driver that come with torch on a GPU.

No compiler has to be installed: NVRTC is part of the CUDA libraries that torch brings.
"""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from thermoe.errors import ThermoeError


class CudaUnavailableError(ThermoeError):
    """NVRTC or the driver cannot be used here."""


def compile_source(source: str, name: str, capability: tuple[int, int]) -> bytes:
    """Machine code (cubin) of CUDA C++ for one compute capability.

    Raises:
        CudaUnavailableError: NVRTC is missing, or refuses the source; the message carries its log.
    """
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    text = source.encode()
    _must(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), 0, None, None), "nvrtcCreateProgram")
    options = [b"--gpu-architecture=sm_%d%d" % capability, b"--std=c++17", b"--diag-suppress=128"]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if failed:
        raise CudaUnavailableError(f"NVRTC cannot compile {name}: {_log(nvrtc, program)}")
    size = ctypes.c_size_t()
    _must(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "nvrtcGetCUBINSize")
    cubin = ctypes.create_string_buffer(size.value)
    _must(nvrtc.nvrtcGetCUBIN(program, cubin), "nvrtcGetCUBIN")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw


class Kernel:
    """A kernel of a cubin, loaded into the current context, that takes one structure by value."""

    def __init__(self, cubin: bytes, name: str) -> None:
        self._driver = _driver()
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _must(self._driver.cuModuleLoadData(ctypes.byref(self._module), cubin), "cuModuleLoadData")
        found = self._driver.cuModuleGetFunction(ctypes.byref(self._function), self._module, name.encode())
        _must(found, "cuModuleGetFunction")

    def launch(
        self, arguments: ctypes.Structure, *, blocks: int, threads: int, stream: int, resident: bool = False
    ) -> None:
        """Queue it on a stream; `resident` blocks all run together (cooperative launch)."""
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        sizes = (blocks, 1, 1, threads, 1, 1, 0, ctypes.c_void_p(stream), parameters)
        if resident:
            _must(self._driver.cuLaunchCooperativeKernel(self._function, *sizes), "cuLaunchCooperativeKernel")
        else:
            _must(self._driver.cuLaunchKernel(self._function, *sizes, None), "cuLaunchKernel")


@cache
def is_available() -> bool:
    """Whether NVRTC and the driver can be loaded."""
    try:
        _nvrtc()
        _driver()
    except CudaUnavailableError:
        return False
    return True


@cache
def _driver() -> ctypes.CDLL:
    return _first(["libcuda.so.1"], "the NVIDIA driver")


@cache
def _nvrtc() -> ctypes.CDLL:
    return _first(list(_nvrtc_places()), "NVRTC")


def _load(name: str) -> ctypes.CDLL:
    """A library; what lies beside NVRTC and is opened by bare name is loaded first."""
    for part in sorted(Path(name).parent.glob("libnvrtc-builtins.so.*")) if "/" in name else ():
        ctypes.CDLL(str(part))
    return ctypes.CDLL(name)


def _nvrtc_places() -> Iterator[str]:
    """The libraries of the packages that torch depends on, then what the system finds."""
    for folder in map(Path, sys.path):
        for found in sorted(folder.glob("nvidia/*/lib/libnvrtc.so.*"), reverse=True):
            yield str(found)
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


def _first(names: Sequence[str], what: str) -> ctypes.CDLL:
    for name in names:
        try:
            return _load(name)
        except OSError:
            continue
    raise CudaUnavailableError(f"{what} cannot be loaded (looked for {', '.join(names)}): use the Triton kernels")


def _log(nvrtc: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.value.decode(errors="replace")


def _must(code: int, call: str) -> None:
    if code:
        raise CudaUnavailableError(
            f"{call} failed with code {code}: update the NVIDIA driver, or use the Triton kernels"
        )
