# mypy: ignore-errors
# ruff: noqa: ANN001, ANN202, PLR0915 - Triton takes pointers and tensors, which have no Python types
"""Attention of one new position: a program for a part of the positions of a key head; the last one joins the parts.

Shapes: B sequences, H query heads, G key heads, R query heads of a key head, L positions, W width of a head.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from thermoe.kernels.overlap import launches_overlap

_PROGRAMS, _POSITIONS, _MOST_PARTS = 256, 128, 32


class Tiling(NamedTuple):
    """Positions of a step of a program, parts of a head's positions, warps, and steps that are on their way."""

    positions: int
    parts: int
    warps: int
    stages: int


@triton.jit
def _halves(x_ptr, d, inside, W: tl.constexpr):
    """First and second halves of heads at `x_ptr`; `d` the offsets of a first half, `inside` which are real."""
    return tl.load(x_ptr + d, mask=inside, other=0.0), tl.load(x_ptr + W // 2 + d, mask=inside, other=0.0)


@triton.jit
def _turned(x1, x2, weights, cos, sin, eps, W: tl.constexpr, NORMS: tl.constexpr):
    """Both halves of heads, normed and turned; `weights`, `cos` and `sin` are halves too."""
    dtype = x1.dtype
    x1, x2 = x1.to(tl.float32), x2.to(tl.float32)
    if NORMS:
        square = tl.sum(x1 * x1 + x2 * x2, axis=1, keep_dims=True)
        by = tl.rsqrt(square / W + eps)
        x1 = (x1 * by * weights[0].to(tl.float32)).to(dtype).to(tl.float32)
        x2 = (x2 * by * weights[1].to(tl.float32)).to(dtype).to(tl.float32)
    cos1, cos2 = cos[0].to(tl.float32), cos[1].to(tl.float32)
    sin1, sin2 = sin[0].to(tl.float32), sin[1].to(tl.float32)
    return (x1 * cos1 - x2 * sin1).to(dtype), (x2 * cos2 + x1 * sin2).to(dtype)


@triton.jit
def _joined(part_ptr, stat_ptr, first, r, w, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr, PARTS: tl.constexpr):
    """Weighted sum of the parts' values, and the sum of the weights; always in the order of the parts."""
    best = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    for i in tl.static_range(PARTS):  # loads that wait for each other would take as long as everything before
        best = tl.maximum(best, tl.load(stat_ptr + 2 * ((first + i) * BLOCK_R + r), cache_modifier=".cg"))
    total = tl.zeros((BLOCK_R,), tl.float32)
    out = tl.zeros((BLOCK_R, BLOCK_W), tl.float32)
    for i in tl.static_range(PARTS):
        slot = (first + i) * BLOCK_R + r
        by = tl.exp2(tl.load(stat_ptr + 2 * slot, cache_modifier=".cg") - best)
        total += by * tl.load(stat_ptr + 2 * slot + 1, cache_modifier=".cg")
        out += by[:, None] * tl.load(part_ptr + slot[:, None] * BLOCK_W + w, cache_modifier=".cg")
    return out, total


@triton.jit
def _block(keys_ptr, values_ptr, mask_ptr, row, i, place, d, w, W: tl.constexpr, BLOCK_L: tl.constexpr):
    """Halves of the keys, values and what is added to the scores of a block of positions; -inf where there is none."""
    p = i * BLOCK_L + tl.arange(0, BLOCK_L)
    before = (p < place)[:, None]
    k1, k2 = _halves(keys_ptr + row + p[:, None] * W, d, before & (d < W // 2), W)
    v = tl.load(values_ptr + row + p[:, None] * W + w, mask=before & (w < W), other=0.0)
    bias = tl.load(mask_ptr + p, mask=p < place, other=0.0).to(tl.float32)
    return k1, k2, v, tl.where(p < place, tl.maximum(bias, -1e30), float("-inf"))


@triton.jit
def _attended(q1, q2, block, scale, most, total, out):
    """Largest score (in powers of two), sum of weights and weighted sum of values, with a block more."""
    k1, k2, v, bias = block
    scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
    scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee") * scale
    scores = (scores + bias[None, :]) * 1.4426950408889634
    higher = tl.maximum(most, tl.max(scores, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # a part without positions
    shares = tl.exp2(scores - base[:, None])
    kept = tl.exp2(most - base)
    out = tl.dot(shares.to(v.dtype), v, out * kept[:, None], input_precision="ieee")
    return higher, total * kept + tl.sum(shares, axis=1), out


@triton.jit
def _decode_attention_kernel(
    qkv_ptr, query_norm_ptr, key_norm_ptr, cos_ptr, sin_ptr, keys_ptr, values_ptr, place_ptr, mask_ptr, out_ptr,
    part_ptr, stat_ptr, count_ptr, eps, scale, L, cos_stride, mask_stride,
    G: tl.constexpr, R: tl.constexpr, W: tl.constexpr, NORMS: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr, HALF: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_L: tl.constexpr, STAGES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)  # of the keys, in all sequences
    part = tl.program_id(1)
    b, g = head // G, head % G
    half: tl.constexpr = W // 2
    r, d, w = tl.arange(0, BLOCK_R), tl.arange(0, HALF)[None, :], tl.arange(0, BLOCK_W)[None, :]
    in_half, in_width = d < half, w < W
    place = tl.minimum(tl.maximum(tl.load(place_ptr), 0), L - 1).to(tl.int32)  # inside the cache
    row = head.to(tl.int64) * L * W
    blocks = tl.cdiv(place, BLOCK_L)
    each = tl.cdiv(blocks, PARTS)
    first, last = part * each, tl.minimum((part + 1) * each, blocks)
    # The past of the cache is asked for before the launch that makes the new position has ended.
    block = _block(keys_ptr, values_ptr, mask_ptr + b * mask_stride, row, first, place, d, w, W, BLOCK_L)
    cos, sin = _halves(cos_ptr + b * cos_stride, d, in_half, W), _halves(sin_ptr + b * cos_stride, d, in_half, W)
    query_norm, key_norm = cos, cos
    if NORMS:
        query_norm, key_norm = _halves(query_norm_ptr, d, in_half, W), _halves(key_norm_ptr, d, in_half, W)
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    heads_ptr = qkv_ptr + b.to(tl.int64) * (G * (R + 2) * W)
    q1, q2 = _halves(heads_ptr + (g * R + r)[:, None] * W, d, (r < R)[:, None] & in_half, W)
    new1, new2 = _halves(heads_ptr + (G * R + g) * W, d, in_half, W)
    value_new = tl.load(heads_ptr + (G * (R + 1) + g) * W + w, mask=in_width, other=0.0)
    q1, q2 = _turned(q1, q2, query_norm, cos, sin, eps, W, NORMS)
    most = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    out = tl.zeros((BLOCK_R, BLOCK_W), tl.float32)
    if part == 0:  # the new position is the first part's
        new1, new2 = _turned(new1, new2, key_norm, cos, sin, eps, W, NORMS)
        at = row + place * W
        tl.store(keys_ptr + at + d, new1, mask=in_half)
        tl.store(keys_ptr + at + half + d, new2, mask=in_half)
        tl.store(values_ptr + at + w, value_new, mask=in_width)
        score = tl.sum(q1.to(tl.float32) * new1.to(tl.float32) + q2.to(tl.float32) * new2.to(tl.float32), axis=1)
        bias = tl.load(mask_ptr + b * mask_stride + place).to(tl.float32)
        most = (score * scale + tl.maximum(bias, -1e30)) * 1.4426950408889634
        total += 1.0
        out += value_new.to(tl.float32)

    most, total, out = _attended(q1, q2, block, scale, most, total, out)
    for i in tl.range(first + 1, last, num_stages=STAGES):
        block = _block(keys_ptr, values_ptr, mask_ptr + b * mask_stride, row, i, place, d, w, W, BLOCK_L)
        most, total, out = _attended(q1, q2, block, scale, most, total, out)

    out_at = out_ptr + ((b * G + g).to(tl.int64) * R + r)[:, None] * W + w
    wanted = (r < R)[:, None] & in_width
    if PARTS == 1:
        tl.store(out_at, (out / total[:, None]).to(out_ptr.dtype.element_ty), mask=wanted)
    else:
        slot = (head * PARTS + part) * BLOCK_R + r
        tl.store(part_ptr + slot[:, None] * BLOCK_W + w, out)
        tl.store(stat_ptr + 2 * slot, most)
        tl.store(stat_ptr + 2 * slot + 1, total)
        tl.debug_barrier()  # all of this program's warps have stored before one thread tells
        if tl.atomic_add(count_ptr + head, 1, sem="acq_rel") == PARTS - 1:
            tl.store(count_ptr + head, 0)  # for the next launch
            out, total = _joined(part_ptr, stat_ptr, head * PARTS, r, w, BLOCK_R, BLOCK_W, PARTS)
            tl.store(out_at, (out / total[:, None]).to(out_ptr.dtype.element_ty), mask=wanted)


def tiling_for(heads: int, length: int) -> Tiling:
    """As many programs as a large GPU has processors, or twice as many, each with some blocks of positions."""
    parts = 2
    while heads * parts <= _PROGRAMS // 2 and parts * _POSITIONS < length:
        parts *= 2
    return Tiling(positions=_POSITIONS, parts=min(parts, _MOST_PARTS), warps=4, stages=1)


def decode_attention_triton(
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
    norms=None,
    counts: Tensor | None = None,
    tiling: Tiling | None = None,
    out: Tensor | None = None,
    overlaps: bool | None = None,
) -> Tensor:
    """Same contract as `decode_attention_reference`.

    `out`: a contiguous tensor to write to, a new one if None; `overlaps`: whether it begins before the launch before it
    has ended, None where the GPU can.
    """
    batch, groups, length, width = keys_BGLW.shape
    out = qkv_BN.new_empty(batch, num_heads * width) if out is None else out
    heads = batch * groups
    tiling = tiling or tiling_for(heads, length)
    rows, block_w = max(triton.next_power_of_2(num_heads // groups), 16), max(triton.next_power_of_2(width), 16)
    part, stat = (torch.empty(heads * tiling.parts * rows * n, device=qkv_BN.device) for n in (block_w, 2))
    overlaps = launches_overlap(qkv_BN) if overlaps is None else overlaps
    if counts is None:
        counts = torch.zeros(heads, dtype=torch.int32, device=qkv_BN.device)
    _decode_attention_kernel[(heads, tiling.parts)](
        qkv_BN, qkv_BN if norms is None else norms.query_W, qkv_BN if norms is None else norms.key_W, cos_BW, sin_BW,
        keys_BGLW, values_BGLW, place_1, mask_BL, out, part, stat, counts,
        0.0 if norms is None else norms.eps, scale, length,
        0 if cos_BW.shape[0] == 1 else cos_BW.stride(0), 0 if mask_BL.shape[0] == 1 else mask_BL.stride(0),
        G=groups, R=num_heads // groups, W=width, NORMS=norms is not None, PARTS=tiling.parts,
        BLOCK_R=rows, HALF=max(triton.next_power_of_2(width // 2), 16), BLOCK_W=block_w, BLOCK_L=tiling.positions,
        STAGES=tiling.stages, OVERLAPS=overlaps, num_warps=tiling.warps, launch_pdl=overlaps,
    )  # fmt: skip
    return out
