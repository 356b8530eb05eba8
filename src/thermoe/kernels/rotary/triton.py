# mypy: ignore-errors
# ruff: noqa: ANN001, ANN202 - Triton takes pointers and tensors, which have no Python types
"""Rotary position embedding of queries and keys: one program for a head of a token.

Shapes: B sequences, H query heads, G key heads, S positions, W width of a head.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotary_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr,
    q_stride_b, q_stride_h, q_stride_s, k_stride_b, k_stride_h, k_stride_s, cos_stride_b,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    b, s = row // S, row % S
    d = tl.arange(0, BLOCK)
    half: tl.constexpr = W // 2
    inside = d < half
    at = b * cos_stride_b + s * W + d
    cos1 = tl.load(cos_ptr + at, mask=inside, other=0.0).to(tl.float32)
    cos2 = tl.load(cos_ptr + at + half, mask=inside, other=0.0).to(tl.float32)
    sin1 = tl.load(sin_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sin2 = tl.load(sin_ptr + at + half, mask=inside, other=0.0).to(tl.float32)
    if head < H:
        x_ptr = q_ptr + b * q_stride_b + head * q_stride_h + s * q_stride_s + d
        x1 = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32)
        x2 = tl.load(x_ptr + half, mask=inside, other=0.0).to(tl.float32)
        out_ptr = q_out_ptr + ((b * H + head) * S + s) * W + d
        tl.store(out_ptr, (x1 * cos1 - x2 * sin1).to(q_out_ptr.dtype.element_ty), mask=inside)
        tl.store(out_ptr + half, (x2 * cos2 + x1 * sin2).to(q_out_ptr.dtype.element_ty), mask=inside)
    else:
        x_ptr = k_ptr + b * k_stride_b + (head - H) * k_stride_h + s * k_stride_s + d
        x1 = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32)
        x2 = tl.load(x_ptr + half, mask=inside, other=0.0).to(tl.float32)
        out_ptr = k_out_ptr + ((b * G + head - H) * S + s) * W + d
        tl.store(out_ptr, (x1 * cos1 - x2 * sin1).to(k_out_ptr.dtype.element_ty), mask=inside)
        tl.store(out_ptr + half, (x2 * cos2 + x1 * sin2).to(k_out_ptr.dtype.element_ty), mask=inside)


def rotary_triton(
    q_BHSW: Tensor, k_BGSW: Tensor, cos_BSW: Tensor, sin_BSW: Tensor, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Same contract as `rotary_reference`; `out`: contiguous tensors to write to, new ones if None."""
    batch, num_heads, positions, width = q_BHSW.shape
    num_keys = k_BGSW.shape[1]
    q_out, k_out = out or (q_BHSW.new_empty(q_BHSW.shape), k_BGSW.new_empty(k_BGSW.shape))
    cos_stride = 0 if cos_BSW.shape[0] == 1 else cos_BSW.stride(0)
    _rotary_kernel[(batch * positions, num_heads + num_keys)](
        q_BHSW, k_BGSW, cos_BSW, sin_BSW, q_out, k_out,
        *q_BHSW.stride()[:3], *k_BGSW.stride()[:3], cos_stride,
        H=num_heads, G=num_keys, S=positions, W=width, BLOCK=triton.next_power_of_2(width // 2), num_warps=1,
    )  # fmt: skip
    return q_out, k_out
