"""Attention of one position in CUDA C++ for capability 9.0: what lies in the cache is on its way before the launch that
makes the new position has ended.

Shapes: B sequences, H query heads, G key heads, L positions of the cache, W width of a head.
"""

import ctypes
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from importlib import resources
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thermoe.kernels.cuda_build import Kernel, check, compile_source, device_files, is_available, libcuda, make_current

if TYPE_CHECKING:
    from thermoe.kernels.decode_attention import HeadNorms

_DEVICE = "#define THERMOE_CLUSTER CLUSTER\n" + device_files(
    "arithmetic", "global_memory", "inboxes", "landings", "launches", "products", "threads"
)
_WIDTH, _TILE, _COLUMNS = 128, 16, 8  # of attention.cu
_TILE_BYTES = 2 * _TILE * _WIDTH
_MASKS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_UINT16, _SWIZZLE_128, _PROMOTE_128 = 1, 3, 2  # CUtensorMap's enumerations
_WARPS, _MOST_SLOTS = 4, 3
_FEW_BLOCKS, _LONG = 64, 2048  # fewer blocks than this cannot keep the memory busy over so many positions

_TensorMap = ctypes.c_uint64 * 16
_POINTERS = ("qkv", "query_norm", "key_norm", "cosines", "sines", "key_cache", "value_cache", "place", "mask", "out")


class _Arguments(ctypes.Structure):
    """`AttentionArgs` of attention.cu."""

    _fields_ = (
        ("keys", _TensorMap),
        ("values", _TensorMap),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int) for name in ("groups", "length", "angle_stride", "mask_stride")),
        *((name, ctypes.c_float) for name in ("eps", "scale")),
        ("unused", ctypes.c_uint64 * 3),
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """What a launch is compiled for: see attention.cu."""

    heads: int
    cluster: int
    warps: int
    slots: int
    norms: int
    mask: int

    def macros(self) -> str:
        """The definitions at the head of the source."""
        return "".join(f"#define {f.name.upper()} {getattr(self, f.name)}\n" for f in fields(self))

    def shared_bytes(self) -> int:
        """Size of `Shared` in attention.cu."""
        owned = -(-self.heads // self.cluster)
        tiles = self.warps * self.slots * 2 * _TILE_BYTES
        rows = (_COLUMNS + 1) * (2 * _WIDTH + 16) + self.warps * _COLUMNS * 8
        joined = self.cluster * owned * (4 * _WIDTH + 8)
        return -(-(tiles + rows + joined + 8 * self.warps * self.slots + 8) // 16) * 16


@dataclass(frozen=True, slots=True)
class Layout:
    """Blocks that share a key head (1, 2, 4 or 8), their warps, and tiles of 16 positions a warp has on their way."""

    blocks: int
    warps: int
    slots: int


def layout_for(heads: int, length: int) -> Layout:
    """Two blocks for each processor of a large GPU, which have as much on their way as their memory holds."""
    blocks = 1
    while blocks < 8 and 2 * heads * blocks <= 2 * 132:
        blocks *= 2
    tiles = -(-length // (_TILE * _WARPS * blocks))
    return Layout(blocks, _WARPS, slots=min(tiles, _MOST_SLOTS))


def supports(given: tuple[Tensor, ...], num_heads: int, norms: "HeadNorms | None") -> bool:
    """Whether `run` takes these (its tensors, in order); needs capability 9.0 and a CUDA compiler."""
    qkv, cos, sin, keys, values, _, mask = given
    batch, groups, length, width = keys.shape
    halves = [qkv, cos, sin, keys, values] + ([] if norms is None else [norms.query_W, norms.key_W])
    if not qkv.is_cuda or any(t.dtype != torch.bfloat16 for t in halves) or mask.dtype not in _MASKS:
        return False
    if any(t.data_ptr() % 8 for t in halves) or (keys.data_ptr() | values.data_ptr()) % 16:
        return False
    if width != _WIDTH or num_heads > _COLUMNS * groups or not batch:
        return False
    heads = batch * groups
    if heads * layout_for(heads, length).blocks < _FEW_BLOCKS and length > _LONG:
        return False
    return torch.cuda.get_device_capability(qkv.device) == (9, 0) and is_available()


def run(
    qkv_BN: Tensor,
    cos_BW: Tensor,
    sin_BW: Tensor,
    keys_BGLW: Tensor,
    values_BGLW: Tensor,
    place_1: Tensor,
    mask_BL: Tensor,
    *,
    num_heads: int,
    scale: float,
    norms: "HeadNorms | None" = None,
    layout: Layout | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Same contract as `decode_attention_reference`; `supports` said yes.

    `out`: a contiguous tensor to write to, a new one if None; `layout` overrides the choice.
    """
    device, (batch, groups, length, width) = qkv_BN.device, keys_BGLW.shape
    out = qkv_BN.new_empty(batch, num_heads * width) if out is None else out
    layout = layout or layout_for(batch * groups, length)
    given = qkv_BN, cos_BW, sin_BW, keys_BGLW, values_BGLW, place_1, mask_BL, out
    arguments = arguments_of(given, scale, norms)
    for name, tensor in (("keys", keys_BGLW), ("values", values_BGLW)):
        described = _tensor_map(tensor.data_ptr(), length, batch * groups)
        setattr(arguments, name, _TensorMap.from_buffer_copy(described))
    with torch.cuda.device(device):
        make_current(device.index)
        kernel = _kernel(shape_of(num_heads // groups, mask_BL, norms, layout), device.index)
        stream = torch.cuda.current_stream().cuda_stream
        kernel.launch(
            arguments, blocks=batch * groups * layout.blocks, threads=32 * layout.warps, stream=stream, overlaps=True
        )
    return out


def shape_of(heads: int, mask_BL: Tensor, norms: "HeadNorms | None", layout: Layout) -> Shape:
    """What has to be compiled for `heads` query heads of a key head."""
    return Shape(heads, layout.blocks, layout.warps, layout.slots, int(norms is not None), _MASKS[mask_BL.dtype])


def arguments_of(given: tuple[Tensor, ...], scale: float, norms: "HeadNorms | None") -> ctypes.Structure:
    """The structure that the kernel takes, but for the tensor maps; `given` as `run` passes them, then the output."""
    qkv, cos, sin, keys, values, place, mask, out = given
    _, groups, length, _ = keys.shape
    query_norm, key_norm = (qkv, qkv) if norms is None else (norms.query_W, norms.key_W)
    tensors = qkv, query_norm, key_norm, cos, sin, keys, values, place, mask, out
    return _Arguments(
        **{name: tensor.data_ptr() for name, tensor in zip(_POINTERS, tensors, strict=True)},
        groups=groups,
        length=length,
        angle_stride=0 if cos.shape[0] == 1 else cos.stride(0),
        mask_stride=0 if mask.shape[0] == 1 else mask.stride(0),
        eps=0.0 if norms is None else norms.eps,
        scale=scale,
    )


def source(shape: Shape, device: str | None = None) -> str:
    """The whole source of one kernel; `device` stands in for the files of the folder `device`."""
    kernel = resources.files(__package__).joinpath("attention.cu").read_text()
    return shape.macros() + (_DEVICE if device is None else device) + kernel


@cache
def _kernel(shape: Shape, device: int) -> Kernel:
    code = compile_source(source(shape), "decode_attention.cu", torch.cuda.get_device_capability(device))
    return Kernel(code, "decode_attention", shared_bytes=shape.shared_bytes())


@lru_cache(maxsize=4096)
def _tensor_map(pointer: int, length: int, heads: int) -> bytes:
    """Keys or values as the copy engine sees them, half a row at a time: numbers, rows, heads."""
    room = ctypes.create_string_buffer(ctypes.sizeof(_TensorMap) + 64)
    start = -(-ctypes.addressof(room) // 64) * 64
    row_bytes = 2 * _WIDTH
    size = (ctypes.c_uint64 * 3)(_WIDTH, length, heads)
    pitch = (ctypes.c_uint64 * 2)(row_bytes, length * row_bytes)
    box = (ctypes.c_uint32 * 3)(_WIDTH // 2, _TILE, 1)
    step = (ctypes.c_uint32 * 3)(1, 1, 1)
    status = libcuda().cuTensorMapEncodeTiled(
        ctypes.c_void_p(start), _UINT16, 3, ctypes.c_void_p(pointer), size, pitch, box, step, 0, _SWIZZLE_128,
        _PROMOTE_128, 0,
    )  # fmt: skip
    check(status, f"describing a cache of {heads} heads and {length} positions")
    return ctypes.string_at(start, ctypes.sizeof(_TensorMap))
