"""What the decode kernel needs of the CUDA driver beside loading and launching: tensor maps and counters."""

import ctypes
from functools import lru_cache
from threading import Lock

from thermoe.kernels.cuda_build import check, libcuda, outside_captures
from thermoe.kernels.expert_mlp.cuda.geometry import ROWS, Boxes
from thermoe.kernels.expert_mlp.cuda.problem import COUNTER_WORDS, TensorMap

_UINT8, _SWIZZLE_64, _SWIZZLE_128, _PROMOTE_128 = 0, 2, 3, 2  # CUtensorMap's enumerations
_NON_BLOCKING, _CAPTURING = 1, 1
_counters: dict[tuple[int, int, int], int] = {}
_lock = Lock()


@lru_cache(maxsize=8192)
def tensor_map(pointer: int, experts: int, boxes: Boxes) -> bytes:
    """A tensor of weights as the copy engine sees it."""
    room = ctypes.create_string_buffer(ctypes.sizeof(TensorMap) + 64)
    start = -(-ctypes.addressof(room) // 64) * 64
    half_bytes = boxes.rows * boxes.row_bytes
    size = (ctypes.c_uint64 * 4)(boxes.row_bytes, boxes.rows, boxes.halves, experts)
    pitch = (ctypes.c_uint64 * 3)(boxes.row_bytes, half_bytes, boxes.halves * half_bytes)
    box = (ctypes.c_uint32 * 4)(boxes.box_bytes, ROWS // boxes.halves, boxes.halves, 1)
    step = (ctypes.c_uint32 * 4)(1, 1, 1, 1)
    swizzle = _SWIZZLE_64 if boxes.box_bytes == 64 else _SWIZZLE_128
    status = libcuda().cuTensorMapEncodeTiled(
        ctypes.c_void_p(start), _UINT8, 4, ctypes.c_void_p(pointer), size, pitch, box, step, 0, swizzle, _PROMOTE_128, 0
    )
    check(status, f"describing {experts} experts of {boxes}")
    return ctypes.string_at(start, ctypes.sizeof(TensorMap))


def counters(device: int, stream: int) -> int:
    """Pointer to zeroed counters for launches that cannot overlap: those of one stream, or of one capture."""
    status, capture = ctypes.c_int(), ctypes.c_uint64()
    asked = libcuda().cuStreamGetCaptureInfo_v2(
        ctypes.c_void_p(stream), ctypes.byref(status), ctypes.byref(capture), None, None, None
    )
    check(asked, "asking whether the stream is captured")
    key = (device, stream, capture.value if status.value == _CAPTURING else 0)
    with _lock:
        if key not in _counters:
            _counters[key] = _zeroed_words(COUNTER_WORDS)
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
