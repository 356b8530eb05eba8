"""Attention of one new position over a cache, from the projections to the heads' outputs, in one launch.

Shapes: B sequences, H query heads, G key heads, L positions of the cache, W width of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.decode_attention.reference import decode_attention_reference
from thermoe.kernels.operands import check_operands

__all__ = ["HeadNorms", "decode_attention", "decode_attention_reference"]


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norms of queries and keys, head by head, before they are turned.

    Attributes:
        query_W, key_W: Weights of the norms.
        eps: Added to the mean square of a head.
    """

    query_W: Tensor
    key_W: Tensor
    eps: float


def decode_attention(
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
    norms: HeadNorms | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Norm and turn the new queries and keys, write keys and values to the cache, and attend.

    Positions behind the new one are not looked at, whatever the mask says. Computed in float32, rounded where a model
    of Transformers with `sdpa` attention rounds: after norm and rotation, and at the end.

    Args:
        qkv_BN: (B, (H + 2 G) W) queries, keys and values of the new position, side by side, contiguous.
        cos_BW, sin_BW: (B or 1, W) of the new positions, contiguous: rotary embedding of halves.
        keys_BGLW, values_BGLW: The cache, contiguous; the new position is written.
        place_1: (1,) int64 on the device, where to write, in 0..L-1: on a GPU nobody refuses another one, since that
            would wait for the device, and the nearest place of the cache is taken.
        mask_BL: (B or 1, L) added to the scores: 0 or a large negative number.
        num_heads: H, a positive multiple of G.
        scale: Factor on the scores.
        norms: Of queries and keys; None where the model has none.
        counts: (B G or more,) int32 zeros for launches that cannot overlap; they are zero again afterwards. None makes
            some, where they are needed.

    On a GPU of capability 9.0 everything but `qkv_BN` is read before the launch just before this one has ended: only
    the projections may come from that launch.

    Returns:
        (B, H W) in the dtype of `qkv_BN`.

    Raises:
        ConfigError: Shapes, dtypes, devices or strides that do not fit, or on a CPU a place outside the cache.
    """
    _check(qkv_BN, cos_BW, sin_BW, keys_BGLW, values_BGLW, mask_BL, num_heads, norms)
    _check_place(place_1, keys_BGLW)
    _check_counts(counts, keys_BGLW)
    if not keys_BGLW.shape[0]:
        return qkv_BN.new_empty(0, num_heads * keys_BGLW.shape[3])
    given = (qkv_BN, cos_BW, sin_BW, keys_BGLW, values_BGLW, place_1, mask_BL)
    if not qkv_BN.is_cuda:
        try:
            return decode_attention_reference(*given, num_heads=num_heads, scale=scale, norms=norms)
        except IndexError as err:  # looking at the place first would be a wait for the host at every step
            raise ConfigError(
                f"place {place_1.tolist()} in a cache of {keys_BGLW.shape[2]} positions: needed 0 to L - 1"
            ) from err
    from thermoe.kernels.decode_attention import cuda

    if cuda.supports(given, num_heads, norms):
        return cuda.run(*given, num_heads=num_heads, scale=scale, norms=norms)
    from thermoe.kernels.decode_attention.triton import decode_attention_triton

    return decode_attention_triton(*given, num_heads=num_heads, scale=scale, norms=norms, counts=counts)


def _check(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, mask: Tensor, num_heads: int,
    norms: HeadNorms | None,
) -> None:  # fmt: skip
    whole = keys.ndim == 4 and 0 not in keys.shape[1:] and isinstance(num_heads, int) and num_heads > 0
    if not whole or values.shape != keys.shape or num_heads % keys.shape[1] or keys.shape[3] % 2:
        raise ConfigError(
            f"keys and values of shapes {tuple(keys.shape)} and {tuple(values.shape)} for {num_heads!r} query heads: "
            "needed (B, G, L, W) both, none of the last three 0, W even and heads a positive multiple of G"
        )
    batch, groups, length, width = keys.shape
    if qkv.shape != (batch, (num_heads + 2 * groups) * width):
        raise ConfigError(
            f"projections of shape {tuple(qkv.shape)}: this cache needs {(batch, (num_heads + 2 * groups) * width)}"
        )
    if cos.shape not in ((batch, width), (1, width)) or sin.shape != cos.shape:
        raise ConfigError(f"cosines and sines of shapes {tuple(cos.shape)}, {tuple(sin.shape)}: needed (B or 1, W)")
    if mask.shape not in ((batch, length), (1, length)):
        raise ConfigError(f"a mask of shape {tuple(mask.shape)}: needed (B or 1, {length})")
    parts = [qkv, cos, sin, keys, values, mask]
    if norms is not None:
        parts += [norms.query_W, norms.key_W]
        if norms.query_W.shape != (width,) or norms.key_W.shape != (width,):
            raise ConfigError(
                f"norms of {tuple(norms.query_W.shape)} and {tuple(norms.key_W.shape)}: needed ({width},)"
            )
    check_operands("projections, keys and values", (qkv, keys, values))
    check_operands("projections, cache, cosines, sines, mask and norms", parts, one_dtype=False)
    if not all(part.is_contiguous() for part in parts):
        raise ConfigError("attention needs contiguous memory, one of its tensors has strides: call contiguous()")


def _check_counts(counts: Tensor | None, keys: Tensor) -> None:
    wanted = keys.shape[0] * keys.shape[1]
    if counts is not None and (
        counts.ndim != 1 or len(counts) < wanted or counts.dtype != torch.int32 or counts.device != keys.device
    ):
        raise ConfigError(
            f"counts {tuple(counts.shape)} of {counts.dtype} on {counts.device}: needed ({wanted} or more,) int32 on "
            f"{keys.device}"
        )


def _check_place(place_1: Tensor, keys: Tensor) -> None:
    if place_1.shape != (1,) or place_1.dtype is not torch.int64 or place_1.device != keys.device:
        raise ConfigError(
            f"place {tuple(place_1.shape)} of {place_1.dtype} on {place_1.device}: needed (1,) int64 on {keys.device}"
        )
