"""Codes of 3 bits as a 2-bit plane (the two high bits) and a 1-bit plane.

Shapes: E experts, N rows, C columns, C' = C rounded up to a multiple of 128. The 2-bit plane is that of the
other formats; in the 1-bit plane, columns 16 s + j of a chunk (s = 0..7, j = 0..15) lie in byte j, bit s.
"""

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.expert_mlp import pack, unpack
from thermoe.kernels.expert_mlp.weights import CHUNK

_SLOTS = 8


def pack_three_bits(codes_ENC: Tensor) -> tuple[Tensor, Tensor]:
    """(E, N, C) uint8 codes below 8 as planes of (E, C' / 128, N, 32) and (E, N, C' / 8) uint8.

    Raises:
        ConfigError: codes of another dtype, shape or range.
    """
    if codes_ENC.dtype != torch.uint8 or codes_ENC.ndim != 3 or (codes_ENC.numel() and int(codes_ENC.max()) > 7):
        raise ConfigError(
            f"codes of shape {tuple(codes_ENC.shape)} and {codes_ENC.dtype}: need (experts, rows, columns) uint8 <= 7"
        )
    (high,) = pack(codes_ENC >> 1, 2)
    padded = torch.nn.functional.pad(codes_ENC & 1, (0, -codes_ENC.shape[-1] % CHUNK))
    bits = padded.unflatten(-1, (-1, _SLOTS, CHUNK // _SLOTS))
    low = (bits << _shifts(bits.device)).sum(dim=-2).to(torch.uint8)
    return high, low.flatten(2)


def unpack_three_bits(high: Tensor, low: Tensor, columns: int) -> Tensor:
    """The (E, N, columns) uint8 codes of the two planes.

    Raises:
        ConfigError: planes that do not belong together.
    """
    wanted = (high.shape[0], high.shape[2], -(-columns // CHUNK) * CHUNK // 8)
    if tuple(low.shape) != wanted or low.dtype != torch.uint8:
        raise ConfigError(f"1-bit plane {tuple(low.shape)} of {low.dtype}: needed {wanted} of uint8")
    bytes_ = low.unflatten(-1, (-1, 1, CHUNK // _SLOTS))
    bits = ((bytes_ >> _shifts(low.device)) & 1).flatten(2)[..., :columns]
    codes: Tensor = unpack((high,), columns) << 1 | bits
    return codes


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(_SLOTS, dtype=torch.uint8, device=device).view(_SLOTS, 1)
