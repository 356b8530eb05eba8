"""Build the decode kernel on the spot, once a user, format and architecture.

CUDA's run-time compiler, which every CUDA build of torch brings, makes machine code from the sources beside this file;
`nvcc` does where that library is not found. The result lies in the user's cache folder under the hash of all that went
into it. Neither a host compiler nor the CUDA headers are needed.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from thermoe.errors import ConfigError

SOURCES = Path(__file__).parent
_VERSION = 1  # of the options below


def cubin(format_name: str, *, warps: int, architecture: str) -> bytes:
    """Machine code of the kernel for one weight format.

    Args:
        format_name: C++ type of the weights (geometry.py).
        warps: that multiply, of each block.
        architecture: such as `sm_90`.

    Raises:
        ConfigError: no compiler was found, or it refused the source.
    """
    main = f'#define THERMOE_FORMAT {format_name}\n#define THERMOE_WARPS {warps}\n#include "decode.cu"\n'
    digest = hashlib.sha256(f"{_VERSION} {architecture} {main}".encode())
    for source in sorted(SOURCES.glob("*.cu*")):
        digest.update(source.read_bytes())
    cached = _cache_folder() / f"decode-{architecture}-{digest.hexdigest()[:32]}.cubin"
    try:
        return cached.read_bytes()
    except OSError:
        pass
    code = _compile(main, architecture)
    _store(cached, code)
    return code


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "thermoe" / "kernels"


def _store(path: Path, code: bytes) -> None:
    """Write whole or not at all; a folder that cannot be written costs the next process a build."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(code)
        Path(file.name).replace(path)
    except OSError:
        return


def _compile(main: str, architecture: str) -> bytes:
    library = _runtime_compiler()
    if library is not None:
        return _compile_in_process(library, main, architecture)
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise ConfigError("no CUDA compiler: neither libnvrtc (package nvidia-cuda-nvrtc) nor nvcc was found")
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "main.cu"), Path(folder, "main.cubin")
        source.write_text(main)
        command = [
            nvcc,
            "-std=c++17",
            "-cubin",
            f"-arch={architecture}",
            f"-I{SOURCES}",
            "-o",
            str(result),
            str(source),
        ]
        done = subprocess.run([*command, "-o", str(result), str(source)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"nvcc refused the decode kernel: {_first_error(done.stderr)}")
        return result.read_bytes()


def _runtime_compiler() -> ctypes.CDLL | None:
    """NVRTC, by its name or from the packages that CUDA builds of torch install."""
    names = [f"libnvrtc.so.{major}" for major in (13, 12)]
    found = [path for root in sys.path for name in names for path in Path(root).glob(f"nvidia/*/lib/{name}")]
    for path in found:
        try:
            for part in sorted(path.parent.glob("libnvrtc-builtins.so.*")):  # it looks for this one by name alone
                ctypes.CDLL(str(part))
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _compile_in_process(library: ctypes.CDLL, main: str, architecture: str) -> bytes:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = [f"--gpu-architecture={architecture}", "--std=c++17", f"--include-path={SOURCES}"]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    if library.nvrtcCreateProgram(ctypes.byref(program), main.encode(), b"main.cu", 0, None, None):
        raise ConfigError("libnvrtc could not take the decode kernel's source")
    try:
        if library.nvrtcCompileProgram(program, len(options), array):
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            library.nvrtcGetProgramLog(program, log)
            raise ConfigError(f"libnvrtc refused the decode kernel: {_first_error(log.value.decode())}")
        library.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        library.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if "error" in line]
    return lines[0] if lines else log.strip()[:200]
