"""What the decode kernel needs of the CUDA driver beside loading and launching: tensor maps."""

import ctypes
from functools import lru_cache

from thermoe.kernels.cuda_build import check, libcuda
from thermoe.kernels.expert_mlp.cuda.boxes import Boxes
from thermoe.kernels.expert_mlp.cuda.problem import TensorMap

_TYPES = {1: 0, 2: 1, 8: 4}  # CUtensorMap's enumerations: unsigned integers of so many bytes
_NO_SWIZZLE, _SWIZZLE_128 = 0, 3
_PROMOTE_NOTHING, _PROMOTE_128 = 0, 2  # scales are read in halves of lines, by jobs that are not neighbours in time


@lru_cache(maxsize=8192)
def tensor_map(pointer: int, boxes: Boxes) -> bytes:
    """A tensor of weights as the copy engine sees it."""
    room = ctypes.create_string_buffer(ctypes.sizeof(TensorMap) + 64)
    start = -(-ctypes.addressof(room) // 64) * 64
    status = libcuda().cuTensorMapEncodeTiled(
        ctypes.c_void_p(start),
        _TYPES[boxes.element_bytes],
        4,
        ctypes.c_void_p(pointer),
        (ctypes.c_uint64 * 4)(*boxes.sizes),
        (ctypes.c_uint64 * 3)(*boxes.pitches),
        (ctypes.c_uint32 * 4)(*boxes.box),
        (ctypes.c_uint32 * 4)(1, 1, 1, 1),
        0,
        _SWIZZLE_128 if boxes.swizzled else _NO_SWIZZLE,
        _PROMOTE_NOTHING if boxes.element_bytes == 2 else _PROMOTE_128,
        0,
    )
    check(status, f"describing {boxes}")
    return ctypes.string_at(start, ctypes.sizeof(TensorMap))
