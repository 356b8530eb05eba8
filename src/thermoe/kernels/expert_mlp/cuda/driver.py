"""The few calls of the CUDA driver that launch the decode kernel, through ctypes.

The module is loaded, and memory taken, in a way that is allowed while a stream is being captured; none of it enters
the graph.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from threading import Lock

from thermoe.errors import ConfigError
from thermoe.kernels.expert_mlp.cuda.problem import COUNTER_WORDS, TensorMap

SHARED_BYTES = 227 * 1024
_UINT8, _SWIZZLE_64, _SWIZZLE_128, _PROMOTE_256 = 0, 2, 3, 3  # CUtensorMap's enumerations
_MAX_SHARED, _RELAXED, _NON_BLOCKING, _CAPTURING = 8, 2, 1, 1
_counters: dict[tuple[int, int, int], int] = {}
_lock = Lock()


@cache
def driver() -> ctypes.CDLL:
    """libcuda, as the process has it."""
    return ctypes.CDLL("libcuda.so.1")


def _check(status: int, what: str) -> None:
    if status:
        text = ctypes.c_char_p()
        driver().cuGetErrorString(status, ctypes.byref(text))
        message = text.value.decode() if text.value else f"error {status}"
        raise ConfigError(f"{what}: the CUDA driver says {message!r}")


@contextmanager
def _outside_captures() -> Iterator[None]:
    mode = ctypes.c_int(_RELAXED)
    driver().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    try:
        yield
    finally:
        driver().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))


def make_current(device: int) -> None:
    """Make torch's context of the device current, where this thread has none yet."""
    context, handle = ctypes.c_void_p(), ctypes.c_int()
    _check(driver().cuCtxGetCurrent(ctypes.byref(context)), "asking for the context")
    if not context.value:
        _check(driver().cuDeviceGet(ctypes.byref(handle), device), "finding the device")
        _check(driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), "taking the context")
        _check(driver().cuCtxSetCurrent(context), "entering the context")


def load(code: bytes) -> ctypes.c_void_p:
    """The kernel of a cubin, in the current context, allowed all shared memory of a processor."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    with _outside_captures():
        _check(driver().cuModuleLoadData(ctypes.byref(module), code), "loading the decode kernel")
        _check(driver().cuModuleGetFunction(ctypes.byref(function), module, b"thermoe_decode"), "finding its entry")
        _check(driver().cuFuncSetAttribute(function, _MAX_SHARED, SHARED_BYTES), "giving it all shared memory")
    return function


@lru_cache(maxsize=8192)
def tensor_map(pointer: int, rows: int, row_bytes: int, box_bytes: int) -> bytes:
    """A tensor as rows of bytes, copied 16 rows by 64 or 128 bytes at a time."""
    room = ctypes.create_string_buffer(ctypes.sizeof(TensorMap) + 64)
    start = -(-ctypes.addressof(room) // 64) * 64
    size, pitch = (ctypes.c_uint64 * 2)(row_bytes, rows), (ctypes.c_uint64 * 1)(row_bytes)
    box, step = (ctypes.c_uint32 * 2)(box_bytes, 16), (ctypes.c_uint32 * 2)(1, 1)
    swizzle = _SWIZZLE_64 if box_bytes == 64 else _SWIZZLE_128
    status = driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(start), _UINT8, 2, ctypes.c_void_p(pointer), size, pitch, box, step, 0, swizzle, _PROMOTE_256, 0
    )
    _check(status, f"describing {rows} rows of {row_bytes} bytes")
    return ctypes.string_at(start, ctypes.sizeof(TensorMap))


def counters(device: int, stream: int) -> int:
    """Pointer to zeroed counters for launches that cannot overlap: those of one stream, or of one capture."""
    status, capture = ctypes.c_int(), ctypes.c_uint64()
    _check(
        driver().cuStreamGetCaptureInfo_v2(
            ctypes.c_void_p(stream), ctypes.byref(status), ctypes.byref(capture), None, None, None
        ),
        "asking whether the stream is captured",
    )
    key = (device, stream, capture.value if status.value == _CAPTURING else 0)
    with _lock:
        if key not in _counters:
            _counters[key] = _zeroed_words(COUNTER_WORDS)
        return _counters[key]


def _zeroed_words(count: int) -> int:
    pointer, aside = ctypes.c_void_p(), ctypes.c_void_p()
    with _outside_captures():
        _check(driver().cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(4 * count)), "taking memory for counters")
        _check(driver().cuStreamCreate(ctypes.byref(aside), _NON_BLOCKING), "making a stream")
        status = driver().cuMemsetD32Async(pointer, 0, ctypes.c_size_t(count), aside)
        status = status or driver().cuStreamSynchronize(aside)
        driver().cuStreamDestroy_v2(aside)
        _check(status, "clearing counters")
    return int(pointer.value or 0)


def launch(
    function: ctypes.c_void_p, problem: ctypes.Structure, *, blocks: int, threads: int, stream: int, together: bool
) -> None:
    """Start one launch. `together` asks the driver to start all blocks at once or not at all."""
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(problem))
    call = driver().cuLaunchCooperativeKernel if together else driver().cuLaunchKernel
    extra = () if together else (None,)
    status = call(function, blocks, 1, 1, threads, 1, 1, SHARED_BYTES, ctypes.c_void_p(stream), parameters, *extra)
    _check(status, "launching the decode kernel")
