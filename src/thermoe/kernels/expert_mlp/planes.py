"""Codes into bit planes and back, and the weights that any of the formats stands for.

Shapes: E experts, N rows, C columns, C' = C rounded up to a multiple of 128, Q pieces of a plane, G scale groups,
P precisions.
`weights.py` says where each code lies.
"""

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.expert_mlp.weights import CHUNK, PIECE_BYTES, DenseMatrices, Fp8Matrices, Matrices, PlaneMatrices

SLOTS, SLOT_COLUMNS = 4, 32
PLANE_BITS = {2: (2,), 4: (2, 2), 8: (2, 2, 4)}  # widths of the planes of a code, most significant first


def pack(codes_ENC: Tensor, bits: int) -> tuple[Tensor, ...]:
    """Codes of 2, 4 or 8 bits in bit planes, most significant first.

    Args:
        codes_ENC: (E, N, C) uint8, each below 2**bits. Columns up to C' are filled with 0.
        bits: 2, 4 or 8.

    Returns:
        1, 2 or 3 tensors of uint8, (E, Q, N, 32): Q = C' / 128 in 2-bit planes and C' / 64 in the 4-bit plane.

    Raises:
        ConfigError: codes of another dtype, number of dimensions or range, or another number of bits.
    """
    if bits not in PLANE_BITS:
        raise ConfigError(f"codes of {bits} bits in planes: choose 2, 4 or 8")
    if codes_ENC.dtype != torch.uint8 or codes_ENC.ndim != 3:
        raise ConfigError(
            f"codes of shape {tuple(codes_ENC.shape)} and {codes_ENC.dtype}: give (experts, rows, columns) uint8"
        )
    if codes_ENC.numel() and int(codes_ENC.max()) >= 2**bits:
        raise ConfigError(f"code {int(codes_ENC.max())} does not fit into {bits} bits: codes lie in 0..{2**bits - 1}")
    slots = _in_slots(codes_ENC)
    planes, below = [], bits
    for width in PLANE_BITS[bits]:
        below -= width
        part = (slots >> below) & (2**width - 1)
        planes.append(_pack_two_bits(part) if width == 2 else _pack_four_bits(part))
    return tuple(planes)


def unpack(planes: tuple[Tensor, ...], columns: int) -> Tensor:
    """The codes that the given planes hold: (E, N, columns) uint8 of 2, 4 or 8 bits for 1, 2 or 3 planes.

    Raises:
        ConfigError: no or too many planes, or planes that are not those of so many columns.
    """
    check_planes(planes, columns)
    code = _unpack_two_bits(planes[0])
    for plane in planes[1:2]:
        code = (code << 2) | _unpack_two_bits(plane)
    for plane in planes[2:]:
        code = (code << 4) | _unpack_four_bits(plane)
    return code.flatten(2)[..., :columns]


def dequantize(matrices: Matrices, bits_E: Tensor | None = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights as (E, N, C) of `dtype`: the truth every kernel is held to.

    Args:
        matrices: Of any format.
        bits_E: (E,) precision at which each expert of a nested bank is read; a value between 2, 4 and 8 reads the
            one below it, a value below 2 reads 2. None reads all planes. Formats with one precision do not look at it.
        dtype: In float32, integer codes with the middle of their range as zero are exact.

    Raises:
        ConfigError: bits for another number of experts, or planes, scales or zeros that do not belong together.
    """
    if isinstance(matrices, DenseMatrices):
        return matrices.weight_ENC.to(dtype)
    if isinstance(matrices, Fp8Matrices):
        return matrices.code_ENC.to(dtype) * _fp8_scale(matrices).to(dtype)
    codes_ENC = unpack(matrices.planes, matrices.columns)
    _check_values(matrices)
    if bits_E is None or not matrices.nested:
        return _plane_weights(matrices, codes_ENC, matrices.max_bits, -1, dtype)
    if bits_E.shape != codes_ENC.shape[:1] or bits_E.device != codes_ENC.device:
        raise ConfigError(
            f"bits of shape {tuple(bits_E.shape)} on {bits_E.device} for {codes_ENC.shape[0]} experts on "
            f"{codes_ENC.device}: needed one for each, there"
        )
    weight_ENC = _plane_weights(matrices, codes_ENC, 2, 0, dtype)
    for p, bits in enumerate((4, 8)[: len(matrices.planes) - 1], start=1):
        read_E11 = (bits_E >= bits).view(-1, 1, 1)
        weight_ENC = torch.where(read_E11, _plane_weights(matrices, codes_ENC, bits, p, dtype), weight_ENC)
    return weight_ENC


def per_column(values_ENG: Tensor, group_size: int, columns: int) -> Tensor:
    """(E, N, G) values of groups, one for each of the C columns: (E, N, C)."""
    return values_ENG.repeat_interleave(group_size, dim=-1)[..., :columns]


def _plane_weights(matrices: PlaneMatrices, codes_ENC: Tensor, bits: int, p: int, dtype: torch.dtype) -> Tensor:
    code = (codes_ENC >> (matrices.max_bits - bits)).to(dtype)
    scale = _of_groups(matrices, matrices.scale_PEGN[p]).to(dtype)
    zero: Tensor | float = (2**bits - 1) / 2
    if matrices.zero_PEGN is not None:
        zero = _of_groups(matrices, matrices.zero_PEGN[p]).to(dtype)
    weight: Tensor = (code - zero) * scale
    return weight


def _of_groups(matrices: PlaneMatrices, values_EGN: Tensor) -> Tensor:
    """(E, N, C)."""
    return per_column(values_EGN.transpose(1, 2), matrices.group_size, matrices.columns)


def _fp8_scale(matrices: Fp8Matrices) -> Tensor:
    if not matrices.blocks:
        return matrices.scale.unsqueeze(-1)
    _, rows, columns = matrices.shape
    by_row = matrices.scale.repeat_interleave(CHUNK, dim=1)[:, :rows]
    return per_column(by_row, CHUNK, columns)


def _in_slots(codes_ENC: Tensor) -> Tensor:
    """(E, N, C'/128, 4 slots, 32 columns)."""
    padded = torch.nn.functional.pad(codes_ENC, (0, -codes_ENC.shape[-1] % CHUNK))
    slots: Tensor = padded.unflatten(-1, (-1, SLOTS, SLOT_COLUMNS))
    return slots


def _pack_two_bits(part: Tensor) -> Tensor:
    byte = part[..., 0, :] | part[..., 1, :] << 2 | part[..., 2, :] << 4 | part[..., 3, :] << 6
    return byte.transpose(1, 2).contiguous()


def _unpack_two_bits(plane: Tensor) -> Tensor:
    bytes_ = plane.transpose(1, 2).unsqueeze(-2)
    shift = torch.arange(0, 8, 2, dtype=torch.uint8, device=plane.device).view(SLOTS, 1)
    slots: Tensor = (bytes_ >> shift) & 3
    return slots


def _pack_four_bits(part: Tensor) -> Tensor:
    pieces = (part[..., 0::2, :] | part[..., 1::2, :] << 4).flatten(2, 3)
    return pieces.transpose(1, 2).contiguous()


def _unpack_four_bits(plane: Tensor) -> Tensor:
    bytes_ = plane.transpose(1, 2).unflatten(2, (-1, SLOTS // 2)).unsqueeze(-2)
    shift = torch.arange(0, 8, 4, dtype=torch.uint8, device=plane.device).view(2, 1)
    slots: Tensor = ((bytes_ >> shift) & 15).flatten(-3, -2)
    return slots


def check_planes(planes: tuple[Tensor, ...], columns: int) -> None:
    """Refuse planes that are not those of so many columns."""
    if not 1 <= len(planes) <= 3:
        raise ConfigError(f"{len(planes)} bit planes: a code has 1 (int2), 2 (int4) or 3 (int8)")
    chunks = -(-columns // CHUNK)
    experts, rows = (planes[0].shape[0], planes[0].shape[2]) if planes[0].ndim == 4 else ("E", "N")
    for width, plane in zip(PLANE_BITS[8], planes, strict=False):
        wanted = (experts, chunks * CHUNK * width // (8 * PIECE_BYTES), rows, PIECE_BYTES)
        if tuple(plane.shape) != wanted or plane.dtype != torch.uint8:
            raise ConfigError(
                f"plane of shape {tuple(plane.shape)} and {plane.dtype} for {columns} columns: needs {wanted} uint8"
            )


def values_shape(matrices: PlaneMatrices) -> tuple[int, int, int, int]:
    """(P, E, G, N) that scales and zeros must have for these planes (checked before)."""
    experts, rows, columns = matrices.shape
    precisions = len(matrices.planes) if matrices.scale_PEGN.ndim == 4 and matrices.nested else 1
    return precisions, experts, -(-columns // matrices.group_size), rows


def _check_values(matrices: PlaneMatrices) -> None:
    wanted = values_shape(matrices)
    for name, values in (("scales", matrices.scale_PEGN), ("zeros", matrices.zero_PEGN)):
        if values is not None and tuple(values.shape) != wanted:
            raise ConfigError(f"{name} of the groups {tuple(values.shape)}: needed {wanted}")
