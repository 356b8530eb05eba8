"""What the grouped kernel needs of the CUDA driver beside loading and launching: tensor maps."""

import ctypes
from functools import lru_cache

from thermoe.kernels.cuda_build import check, libcuda
from thermoe.kernels.expert_mlp.weights import PIECE_BYTES

TensorMap = ctypes.c_uint64 * 16
_UINT8, _NO_SWIZZLE, _SWIZZLE_128, _PROMOTE_256 = 0, 0, 3, 3  # CUtensorMap's enumerations
_BOX_BYTES = 128
_HALF, _GROUP = 16, 32  # rows
_CODE_ROWS = 128  # of a copy


@lru_cache(maxsize=4096)
def tensor_map(pointer: int, rows: int, row_bytes: int, *, halves: bool = False, box_rows: int = 64) -> bytes:
    """A matrix in device memory as the copy engine sees it, some rows by 128 bytes at a time.

    Args:
        pointer: to its first byte.
        rows: of all experts; a multiple of 32 with halves.
        row_bytes: a multiple of 16.
        halves: whether the rows are the lower (or the upper) 16 of each of neighbouring groups of 32 rows.
        box_rows: as many rows at a time; a multiple of 8, with halves of 16.
    """
    if halves:
        sizes, pitches = (row_bytes, _HALF, 2, rows // _GROUP), (row_bytes, _HALF * row_bytes, _GROUP * row_bytes)
        boxes = (_BOX_BYTES, _HALF, 1, box_rows // _HALF)
        return _encoded(pointer, sizes, pitches, boxes, _SWIZZLE_128)
    return _encoded(pointer, (row_bytes, rows), (row_bytes,), (_BOX_BYTES, box_rows), _SWIZZLE_128)


@lru_cache(maxsize=4096)
def code_map(pointer: int, rows: int) -> bytes:
    """A plane of codes as the copy engine sees it, 128 rows of a piece at a time.

    Args:
        pointer: to its first byte.
        rows: of all pieces and experts.
    """
    return _encoded(pointer, (PIECE_BYTES, rows), (PIECE_BYTES,), (PIECE_BYTES, _CODE_ROWS), _NO_SWIZZLE)


def _encoded(
    pointer: int, sizes: tuple[int, ...], pitches: tuple[int, ...], boxes: tuple[int, ...], swizzle: int
) -> bytes:
    room = ctypes.create_string_buffer(ctypes.sizeof(TensorMap) + 64)
    start = -(-ctypes.addressof(room) // 64) * 64
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
        swizzle,
        _PROMOTE_256,
        0,
    )
    check(status, f"describing a matrix of {sizes} bytes and rows")
    return ctypes.string_at(start, ctypes.sizeof(TensorMap))
