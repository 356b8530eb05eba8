"""The few calls of the CUDA driver that load and launch a kernel, through ctypes.

Modules are loaded, and memory taken, in a way that is allowed while a stream is being captured; none of it enters the
graph.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from thermoe.errors import ThermoeError

_MAX_SHARED, _RELAXED = 8, 2  # CUfunction_attribute, CUstreamCaptureMode
_CLUSTER, _OVERLAPS = 4, 6  # CUlaunchAttributeID


class _Attribute(ctypes.Structure):
    """`CUlaunchAttribute`: a number and a union of 64 bytes, of which a flag takes the first four, a shape twelve."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 3), ("rest", ctypes.c_int * 13))


class _Config(ctypes.Structure):
    """`CUlaunchConfig`."""

    _fields_ = (
        ("blocks", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


def _config(blocks: int, threads: int, shared_bytes: int, stream: int, attribute: _Attribute) -> _Config:
    return _Config(
        blocks=(blocks, 1, 1),
        threads=(threads, 1, 1),
        shared_bytes=shared_bytes,
        stream=stream,
        attributes=ctypes.pointer(attribute),
        num_attributes=1,
    )


class CudaUnavailableError(ThermoeError):
    """A CUDA kernel cannot be built, loaded or launched here; the Triton kernels do the same work."""


@cache
def libcuda() -> ctypes.CDLL:
    """libcuda, as the process has it.

    Raises:
        CudaUnavailableError: there is none.
    """
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as err:
        raise CudaUnavailableError(f"the NVIDIA driver cannot be loaded ({err}): use the Triton kernels") from None


def check(status: int, doing: str) -> None:
    """Turn a status of the driver that is not success into an error.

    Raises:
        CudaUnavailableError: with what was being done and the driver's own words.
    """
    if status == 0:
        return
    text = ctypes.c_char_p()
    libcuda().cuGetErrorString(status, ctypes.byref(text))
    message = text.value.decode() if text.value else f"error {status}"
    raise CudaUnavailableError(f"{doing}: the CUDA driver says {message!r}; update it, or use the Triton kernels")


@contextmanager
def outside_captures() -> Iterator[None]:
    """Calls of this thread that a capture under way would forbid, and that it does not record."""
    mode = ctypes.c_int(_RELAXED)
    libcuda().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    try:
        yield
    finally:
        libcuda().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))


def make_current(device: int) -> None:
    """Make torch's context of the device current, where this thread has none yet."""
    context, handle = ctypes.c_void_p(), ctypes.c_int()
    check(libcuda().cuCtxGetCurrent(ctypes.byref(context)), "asking for the context")
    if not context.value:
        check(libcuda().cuDeviceGet(ctypes.byref(handle), device), "finding the device")
        check(libcuda().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), "taking the context")
        check(libcuda().cuCtxSetCurrent(context), "entering the context")


class Kernel:
    """A kernel of a cubin, loaded into the current context, that takes one structure by value."""

    def __init__(self, code: bytes, name: str, *, shared_bytes: int = 0) -> None:
        """Load `name` from machine code; `shared_bytes` of dynamic shared memory go with every launch.

        Raises:
            CudaUnavailableError: the driver refuses the code or the shared memory.
        """
        module, self._function, self._shared_bytes = ctypes.c_void_p(), ctypes.c_void_p(), shared_bytes
        with outside_captures():
            check(libcuda().cuModuleLoadData(ctypes.byref(module), code), f"loading {name}")
            found = libcuda().cuModuleGetFunction(ctypes.byref(self._function), module, name.encode())
            check(found, f"finding the entry of {name}")
            if shared_bytes:
                given = libcuda().cuFuncSetAttribute(self._function, _MAX_SHARED, shared_bytes)
                check(given, f"giving {name} {shared_bytes} bytes of shared memory")
        self._name = name

    def launch(
        self,
        arguments: ctypes.Structure,
        *,
        blocks: int,
        threads: int,
        stream: int,
        resident: bool = False,
        overlaps: bool = False,
        shared_bytes: int | None = None,
    ) -> None:
        """Queue it on a stream.

        Args:
            arguments: its only parameter.
            blocks, threads: of the grid, and of a block.
            stream: that it is queued on.
            resident: all blocks run together or not at all (cooperative launch).
            overlaps: it begins before the launch before it has ended, and waits for its end by itself (programmatic
                dependent launch, compute capability 9.0).
            shared_bytes: of dynamic shared memory, if less than all that the kernel was given.

        Raises:
            CudaUnavailableError: the driver refuses the launch.
        """
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        shared_bytes = self._shared_bytes if shared_bytes is None else shared_bytes
        if overlaps:
            config = _config(blocks, threads, shared_bytes, stream, _Attribute(id=_OVERLAPS, value=(1, 0, 0)))
            status = libcuda().cuLaunchKernelEx(ctypes.byref(config), self._function, parameters, None)
        else:
            call = libcuda().cuLaunchCooperativeKernel if resident else libcuda().cuLaunchKernel
            extra = () if resident else (None,)
            shape = (blocks, 1, 1, threads, 1, 1, shared_bytes)
            status = call(self._function, *shape, ctypes.c_void_p(stream), parameters, *extra)
        check(status, f"launching {self._name}")

    def clusters_at_once(self, size: int, threads: int) -> int:
        """How many clusters of `size` blocks, with all of the kernel's shared memory, can run at a time.

        Raises:
            CudaUnavailableError: the driver does not say.
        """
        found = ctypes.c_int()
        config = _config(size, threads, self._shared_bytes, 0, _Attribute(id=_CLUSTER, value=(size, 1, 1)))
        asked = libcuda().cuOccupancyMaxActiveClusters(ctypes.byref(found), self._function, ctypes.byref(config))
        check(asked, f"asking how many clusters of {self._name} run at once")
        return found.value
