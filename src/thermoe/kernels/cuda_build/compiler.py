"""CUDA C++ to machine code, once a user, source and architecture.

CUDA's run-time compiler, which every CUDA build of torch brings, compiles in the process; `nvcc` does where that
library is not found. The result lies in the user's cache folder under the hash of all that went into it. Neither a
host compiler nor the CUDA headers are needed.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from thermoe.kernels.cuda_build.driver import CudaUnavailableError

_VERSION = 2  # of the options below
_COMMON = Path(__file__).parent  # its folder `device` is what every source may include
_MAGIC = b"\x7fELF"
_MAJORS = (13, 12)


def compile_source(
    source: str, name: str, capability: tuple[int, int], *, include: Path | None = None, specific: bool = False
) -> bytes:
    """Machine code (cubin) of CUDA C++ for one compute capability.

    Args:
        source: of the translation unit.
        name: that errors and the kept file bear.
        capability: such as (9, 0).
        include: folder of the files it includes, beside those of `device_files`.
        specific: whether it uses instructions that later capabilities do not have (`sm_90a`).

    Raises:
        CudaUnavailableError: no compiler was found, or it refused the source; the message carries its first error.
    """
    architecture = "sm_{}{}".format(*capability) + ("a" if specific else "")
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "--diag-suppress=128"]
    digest = hashlib.sha256(f"{_VERSION} {options} {source}".encode())
    folders = [_COMMON / "device", *([include] if include else [])]
    for included in (file for folder in folders for file in sorted(folder.glob("*.cu*"))):
        digest.update(included.name.encode() + included.read_bytes())
    folder = _cache_folder()
    kept = folder and folder / f"{Path(name).stem}-{architecture}-{digest.hexdigest()[:32]}.cubin"
    code = _read(kept)
    if code is None:
        options += [f"--include-path={place}" for place in (_COMMON, *([include] if include else []))]
        code = _compile(source, name, options)
        _store(kept, code)
    return code


def device_files(*names: str) -> str:
    """The lines that include files of the folder `device`, which every compiled source finds."""
    return "".join(f'#include "device/{name}.cuh"\n' for name in names)


def has_compiler() -> bool:
    """Whether NVRTC or nvcc is here."""
    return compiler_name() is not None


def compiler_name() -> str | None:
    """What compiles CUDA C++ here: "NVRTC", the path of nvcc, or None."""
    return "NVRTC" if _runtime_compiler() is not None else _nvcc()


def _cache_folder() -> Path | None:
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    return root / "thermoe" / "kernels"


def _read(path: Path | None) -> bytes | None:
    """What was kept, if it is machine code at all."""
    try:
        code = path.read_bytes() if path else b""
    except OSError:
        return None
    return code if code.startswith(_MAGIC) else None


def _store(path: Path | None, code: bytes) -> None:
    """Write whole or not at all; a folder that cannot be written costs the next process a build."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(code)
        Path(file.name).replace(path)
    except OSError:
        return


def _compile(source: str, name: str, options: list[str]) -> bytes:
    library = _runtime_compiler()
    if library is not None:
        return _compile_in_process(library, source, name, options)
    nvcc = _nvcc()
    if nvcc is None:
        raise CudaUnavailableError(
            "no CUDA compiler: neither libnvrtc (package nvidia-cuda-nvrtc) nor nvcc was found; "
            "install one, or use the Triton kernels"
        )
    with tempfile.TemporaryDirectory() as folder:
        file, result = Path(folder, "main.cu"), Path(folder, "main.cubin")
        file.write_text(source)
        command = [nvcc, "-cubin", *options, "-o", str(result), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CudaUnavailableError(f"nvcc refuses {name}: {_first_error(done.stderr)}")
        return result.read_bytes()


def _nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


@cache
def _runtime_compiler() -> ctypes.CDLL | None:
    """NVRTC, from the packages that CUDA builds of torch install or by its name."""
    for name in _places():
        try:
            for part in sorted(Path(name).parent.glob("libnvrtc-builtins.so.*")) if "/" in name else ():
                ctypes.CDLL(str(part))  # NVRTC looks for this one by name alone
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _places() -> Iterator[str]:
    names = [f"libnvrtc.so.{major}" for major in _MAJORS]
    for folder in map(Path, sys.path):
        for name in names:
            yield from map(str, sorted(folder.glob(f"nvidia/*/lib/{name}")))
    yield from names


def _compile_in_process(library: ctypes.CDLL, source: str, name: str, options: list[str]) -> bytes:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    if library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None):
        raise CudaUnavailableError(f"NVRTC cannot take the source of {name}: use the Triton kernels")
    try:
        if library.nvrtcCompileProgram(program, len(options), array):
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            library.nvrtcGetProgramLog(program, log)
            raise CudaUnavailableError(f"NVRTC refuses {name}: {_first_error(log.value.decode(errors='replace'))}")
        library.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        library.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if "error" in line]
    return lines[0] if lines else " ".join(log.split())[:200]
