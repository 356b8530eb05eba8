"""The calls whose kernels are compiled ahead: a choice that holds every kernel and every way it reads weights.

Tensors are on torch's `meta` device: they have shapes and no memory. Shapes: T tokens, K experts per token, E experts,
D model width, I expert width.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from thermoe.kernels.add_norm.triton import add_norm_triton
from thermoe.kernels.combine.triton import combine_triton
from thermoe.kernels.decode_attention import HeadNorms
from thermoe.kernels.decode_attention.triton import decode_attention_triton
from thermoe.kernels.dispatch import DispatchPlan
from thermoe.kernels.dispatch.triton import dispatch_plan_triton
from thermoe.kernels.expert_mlp.configs import default, shape_of
from thermoe.kernels.expert_mlp.cuda.build import cubin
from thermoe.kernels.expert_mlp.cuda_grouped.build import Build
from thermoe.kernels.expert_mlp.cuda_grouped.build import cubin as grouped_cubin
from thermoe.kernels.expert_mlp.cuda_grouped.launch import build_of as grouped_build_of
from thermoe.kernels.expert_mlp.triton_launch import expert_mlp_few, expert_mlp_many
from thermoe.kernels.expert_mlp.triton_order import in_code_order
from thermoe.kernels.expert_mlp.weights import DenseMatrices, ExpertWeights, Fp8Matrices, Matrices, PlaneMatrices
from thermoe.kernels.few_linear.cuda.launch import cubin as linear_cubin
from thermoe.kernels.few_linear.cuda.layout import build_for
from thermoe.kernels.few_linear.triton import few_linear_triton
from thermoe.kernels.route.launch import launch, outputs

D, I, E, K = 2048, 768, 128, 8  # noqa: E741
EMPTY = partial(torch.empty, device="meta")
BF16, F32, U8 = torch.bfloat16, torch.float32, torch.uint8

Call = Callable[[], Any]


def calls(architecture: int) -> dict[str, Call]:
    """By name; all for sm_90, a few of each kind for the others."""
    formats = ["bf16", "fp8-channel", "int4"]
    if architecture == 90:
        formats += ["fp8-block", "int2", "int8", "int4-zeros", "bank8"]
    made: dict[str, Call] = {}
    for name in formats:
        made[f"{name}, 16 tokens"] = partial(_mlp, name, 16, architecture)
        if name not in ("int2", "int8", "int4-zeros"):
            made[f"{name}, 4096 tokens"] = partial(_mlp, name, 4096, architecture)
    made["routing, 16 tokens"] = partial(_route, 16)
    made["combination"] = _combine
    made["layer of one position"] = partial(_layer, architecture >= 90)
    made["plan, 64 tokens"] = partial(_plan, 64)
    if architecture == 90:
        made["fp8-channel and e4m3 tokens, 4096 tokens"] = partial(_mlp, "fp8-channel", 4096, 90, eight=True)
        made["routing, 4096 tokens"] = partial(_route, 4096)
        made["plan, 4096 tokens"] = partial(_plan, 4096)
        made["order of codes"] = partial(in_code_order, EMPTY(4096, D, dtype=BF16))
        made |= _cuda()
    return made


def _cuda() -> dict[str, Call]:
    """Sources of CUDA C++, which only capability 9.0 is given; they return machine code."""
    formats = ("Bf16", "Fp8<false>", "Planes<4, 128, false, false>", "Planes<8, 128, true, false>")
    decode: dict[str, Call] = {
        f"CUDA decode, {name}": partial(cubin, name, warps=8, architecture="sm_90") for name in formats
    }
    builds = {
        "bf16": Build(),
        "e4m3": Build(eight=True),
        "int4": grouped_build_of(ExpertWeights(fc1=_matrices("int4", 2 * I, D), fc2=_matrices("int4", D, I))),
    }
    grouped: dict[str, Call] = {
        f"CUDA grouped, {name}": partial(grouped_cubin, build) for name, build in builds.items()
    }
    plan: dict[str, Call] = {f"CUDA plan, {n} tokens": partial(_plan_code, n) for n in (65, 4096, 32768)}
    linear: dict[str, Call] = {
        f"CUDA linear, {n} tokens of {columns}": partial(_linear_code, columns, n)
        for columns, n in ((2048, 1), (2048, 16), (4096, 16), (2880, 32), (4096, 64))
    }
    rest: dict[str, Call] = {"CUDA attention, 64 heads": _attention_code, "CUDA router, 16 tokens": _router_code}
    routing = {f"CUDA routing, {n} tokens": partial(_routing_code, n) for n in (1, 16, 64, 4096)}
    return decode | grouped | plan | routing | linear | rest


def _routing_code(num_tokens: int) -> bytes:
    from thermoe.kernels.cuda_build import compile_source
    from thermoe.kernels.route import cuda

    layout = cuda.layout_for(num_tokens, E, 132)
    assert layout is not None
    shape = cuda.shape_of(EMPTY(num_tokens, E), EMPTY(4 * E), None, K, [0, 1, 1, 1, 1], layout)
    return compile_source(cuda.source(shape, layout.cluster), "route.cu", (9, 0))


def _linear_code(columns: int, num_tokens: int) -> bytes:
    build = build_for(columns, num_tokens)
    assert build is not None
    return linear_cubin(build)


def _router_code() -> bytes:
    from thermoe.kernels.cuda_build import compile_source
    from thermoe.kernels.route.cuda import Layout, rows

    layout, flags = Layout(8, 8, 1, cluster=True), [0, 1, 1, 1, 1]
    shape = rows.shape_of(EMPTY(16, D, dtype=BF16), EMPTY(16, E, dtype=BF16), EMPTY(4 * E), None, K, flags, layout)
    return compile_source(rows.source(shape), "route_rows.cu", (9, 0))


def _attention_code() -> bytes:
    from thermoe.kernels.cuda_build import compile_source
    from thermoe.kernels.decode_attention import cuda

    norms = HeadNorms(EMPTY(128), EMPTY(128), 1e-6)
    shape = cuda.shape_of(8, EMPTY(16, 704, dtype=BF16), norms, cuda.layout_for(64, 704))
    return compile_source(cuda.source(shape), "decode_attention.cu", (9, 0))


def _plan_code(num_tokens: int) -> bytes:
    from thermoe.kernels.cuda_build import compile_source
    from thermoe.kernels.dispatch import cuda

    layout = cuda.layout_for(num_tokens * K, 132)
    assert layout is not None
    shape = cuda.shape_of(EMPTY(num_tokens, K, dtype=torch.int64), EMPTY(num_tokens, K), E, layout)
    return compile_source(cuda.source(shape), "dispatch_plan.cu", (9, 0))


def _mlp(name: str, num_tokens: int, architecture: int, *, eight: bool = False) -> None:
    experts = ExpertWeights(fc1=_matrices(name, 2 * I, D), fc2=_matrices(name, D, I), bits_E=_bits(name))
    shape = shape_of(experts, num_tokens, K)
    config = default(shape, architecture)  # not a frozen one: bounds then outlive new measurements
    x_TD, ids_TK, weights_TK = (
        EMPTY(num_tokens, D, dtype=BF16),
        EMPTY(num_tokens, K, dtype=torch.int64),
        EMPTY(num_tokens, K),
    )
    out_TD = torch.empty_like(x_TD)
    if shape.few:
        expert_mlp_few(x_TD, ids_TK, weights_TK, experts, config, out_TD)
        return
    if eight:
        tile = replace(config.fc1, rows=256, tokens=128, columns=128)
        config = replace(config, fc1=tile, fc2=replace(tile, rows=128), eight=True)
    plan = DispatchPlan(slot_N=EMPTY(num_tokens * K, dtype=torch.int32), offsets_E1=EMPTY(E + 1, dtype=torch.int32))
    expert_mlp_many(x_TD, ids_TK, weights_TK, experts, config, out_TD, plan)


def _bits(name: str) -> torch.Tensor | None:
    return EMPTY(E, dtype=torch.int32) if name.startswith("bank") else None


def _matrices(name: str, rows: int, columns: int) -> Matrices:
    if name == "bf16":
        return DenseMatrices(weight_ENC=EMPTY(E, rows, columns, dtype=BF16))
    if name.startswith("fp8"):
        scale = EMPTY(E, rows) if name == "fp8-channel" else EMPTY(E, rows // 128, columns // 128)
        return Fp8Matrices(code_ENC=EMPTY(E, rows, columns, dtype=torch.float8_e4m3fn), scale=scale)
    bits = int(name.removesuffix("-zeros")[-1])
    widths = {2: (2,), 4: (2, 2), 8: (2, 2, 4)}[bits]
    scale = EMPTY(len(widths) if name == "bank8" else 1, E, columns // 128, rows, dtype=torch.float16)
    return PlaneMatrices(
        planes=tuple(EMPTY(E, columns // 256 * width, rows, 32, dtype=U8) for width in widths),
        scale_PEGN=scale,
        zero_PEGN=scale if name.endswith("zeros") else None,
        columns=columns,
        group_size=128,
    )


def _route(num_tokens: int) -> None:
    logits_TE = EMPTY(num_tokens, E)
    sums = EMPTY(2 * E + 4, dtype=torch.float64)
    flags = [0, 1, 1, 1, 1]  # softmax, one group, which is kept, renormalised, the union is set
    launch(logits_TE, EMPTY(4 * E), None, None, sums, K, 1, flags, 1.0, outputs(logits_TE, K, 1))


def _combine() -> None:
    ids_TK, weights_TK = EMPTY(4096, K, dtype=torch.int64), EMPTY(4096, K)
    for dtype in (BF16, F32):
        combine_triton(EMPTY(4096 * K, D, dtype=dtype), weights_TK, ids_TK, E, EMPTY(4096, D, dtype=BF16))


def _layer(overlaps: bool) -> None:
    x_TD, weight_D, tokens, width = EMPTY(16, D, dtype=BF16), EMPTY(D, dtype=BF16), 16, 128
    matrices = [EMPTY(num, D, dtype=BF16) for num in (4096, 512, 512)]
    add_norm_triton(x_TD, x_TD, weight_D, 1e-6, (x_TD, x_TD), overlaps)
    qkv_TN = few_linear_triton(x_TD, matrices, overlaps=overlaps)
    few_linear_triton(EMPTY(16, 4096, dtype=BF16), [EMPTY(D, 4096, dtype=BF16)], [weight_D], overlaps=overlaps)
    turn, norm = EMPTY(tokens, width, dtype=BF16), EMPTY(width, dtype=BF16)
    cache = [EMPTY(tokens, 4, 704, width, dtype=BF16) for _ in range(2)]
    place, mask = EMPTY(1, dtype=torch.int64), EMPTY(tokens, 704, dtype=BF16)
    norms = HeadNorms(norm, norm, 1e-6)
    decode_attention_triton(
        qkv_TN, turn, turn, *cache, place, mask, num_heads=32, scale=0.1, norms=norms, overlaps=overlaps
    )


def _plan(num_tokens: int) -> None:
    dispatch_plan_triton(EMPTY(num_tokens, K, dtype=torch.int64), EMPTY(num_tokens, K), E)
