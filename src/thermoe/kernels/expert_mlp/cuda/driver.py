"""What the decode kernel needs of the CUDA driver beside loading and launching: tensor maps."""

import ctypes
from functools import lru_cache

from thermoe.kernels.cuda_build import check, libcuda
from thermoe.kernels.expert_mlp.cuda.geometry import ROWS, Boxes
from thermoe.kernels.expert_mlp.cuda.problem import TensorMap

_UINT8, _SWIZZLE_64, _SWIZZLE_128, _PROMOTE_128 = 0, 2, 3, 2  # CUtensorMap's enumerations


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
