"""What the grouped kernel needs of the CUDA driver beside loading and launching: tensor maps and counters."""

import ctypes
from functools import lru_cache
from threading import Lock

from thermoe.kernels.cuda_build import check, libcuda, outside_captures

TensorMap = ctypes.c_uint64 * 16
_UINT8, _SWIZZLE_128, _PROMOTE_256 = 0, 3, 3  # CUtensorMap's enumerations
_NON_BLOCKING, _CAPTURING = 1, 1
_BOX_BYTES, _BOX_ROWS = 128, 64
_HALF, _GROUP = 16, 32  # rows
_counters: dict[tuple[int, int, int], int] = {}
_lock = Lock()


@lru_cache(maxsize=4096)
def tensor_map(pointer: int, rows: int, row_bytes: int, *, halves: bool) -> bytes:
    """A matrix in device memory as the copy engine sees it, 64 rows by 128 bytes at a time.

    Args:
        pointer: to its first byte.
        rows: of all experts; a multiple of 32 with halves.
        row_bytes: a multiple of 16.
        halves: whether the 64 rows are the lower (or the upper) 16 of each of four groups of 32 rows.
    """
    room = ctypes.create_string_buffer(ctypes.sizeof(TensorMap) + 64)
    start = -(-ctypes.addressof(room) // 64) * 64
    sizes: tuple[int, ...]
    pitches: tuple[int, ...]
    boxes: tuple[int, ...]
    if halves:
        sizes, pitches = (row_bytes, _HALF, 2, rows // _GROUP), (row_bytes, _HALF * row_bytes, _GROUP * row_bytes)
        boxes = (_BOX_BYTES, _HALF, 1, _BOX_ROWS // _HALF)
    else:
        sizes, pitches, boxes = (row_bytes, rows), (row_bytes,), (_BOX_BYTES, _BOX_ROWS)
    rank = len(sizes)
    status = libcuda().cuTensorMapEncodeTiled(
        ctypes.c_void_p(start),
        _UINT8,
        rank,
        ctypes.c_void_p(pointer),
        (ctypes.c_uint64 * rank)(*sizes),
        (ctypes.c_uint64 * (rank - 1))(*pitches),
        (ctypes.c_uint32 * rank)(*boxes),
        (ctypes.c_uint32 * rank)(*[1] * rank),
        0,
        _SWIZZLE_128,
        _PROMOTE_256,
        0,
    )
    check(status, f"describing {rows} rows of {row_bytes} bytes")
    return ctypes.string_at(start, ctypes.sizeof(TensorMap))


def counters(device: int, stream: int, words: int) -> int:
    """Pointer to zeroed words for launches that cannot overlap: those of one stream, or of one capture."""
    status, capture = ctypes.c_int(), ctypes.c_uint64()
    asked = libcuda().cuStreamGetCaptureInfo_v2(
        ctypes.c_void_p(stream), ctypes.byref(status), ctypes.byref(capture), None, None, None
    )
    check(asked, "asking whether the stream is captured")
    key = (device, stream, capture.value if status.value == _CAPTURING else 0)
    with _lock:
        if key not in _counters:
            _counters[key] = _zeroed_words(words)
        return _counters[key]


def _zeroed_words(count: int) -> int:
    pointer, aside = ctypes.c_void_p(), ctypes.c_void_p()
    with outside_captures():
        check(libcuda().cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(4 * count)), "taking memory for counters")
        check(libcuda().cuStreamCreate(ctypes.byref(aside), _NON_BLOCKING), "making a stream")
        status = libcuda().cuMemsetD32Async(pointer, 0, ctypes.c_size_t(count), aside)
        status = status or libcuda().cuStreamSynchronize(aside)
        libcuda().cuStreamDestroy_v2(aside)
        check(status, "clearing counters")
    return int(pointer.value or 0)
