"""Experts of every format with random values, and the check that every kernel has to pass.

Shapes: T tokens, K experts per token, E experts, D model width, I expert width, N rows and C columns of a matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thermoe.kernels.expert_mlp import (
    Activation,
    DenseMatrices,
    ExpertWeights,
    Fp8Matrices,
    Matrices,
    PlaneMatrices,
    expert_mlp_reference,
    pack,
)

FORMATS = ("dense", "fp8-channel", "fp8-block", "int2", "int4", "int8", "bank8", "bank4", "int4-zeros")


@dataclass(frozen=True, kw_only=True)
class Case:
    format: str = "dense"
    dtype: torch.dtype = torch.float32
    tokens: int = 7
    top_k: int = 2
    experts: int = 5
    d_model: int = 96
    inter_size: int = 64
    group_size: int = 32
    activation: Activation = Activation.SWIGLU
    biases: bool = False
    routing: str = "random"  # random, one (all slots at one expert), dropped (every third slot, in both ways)


def random_matrices(case: Case, rows: int, columns: int, generator: torch.Generator) -> Matrices:
    """Weights of standard deviation near 1 / sqrt(columns)."""
    E, spread = case.experts, columns**-0.5
    weight_ENC = torch.randn(E, rows, columns, generator=generator) * spread
    if case.format == "dense":
        return DenseMatrices(weight_ENC=weight_ENC.to(case.dtype))
    if case.format.startswith("fp8"):
        shape = (E, rows) if case.format == "fp8-channel" else (E, -(-rows // 128), -(-columns // 128))
        scale = spread * (0.5 + torch.rand(shape, generator=generator))
        code_ENC = torch.randn(E, rows, columns, generator=generator).to(torch.float8_e4m3fn)
        return Fp8Matrices(code_ENC=code_ENC, scale=scale)
    bits = int(case.format.split("-")[0][-1])
    codes_ENC = torch.randint(0, 2**bits, (E, rows, columns), generator=generator, dtype=torch.uint8)
    num_planes = {2: 1, 4: 2, 8: 3}[bits]
    nested = case.format.startswith("bank")
    shape = (num_planes if nested else 1, E, -(-columns // case.group_size), rows)
    scale_PEGN = spread * (0.5 + torch.rand(shape, generator=generator))
    for p in range(shape[0]):  # codes of b bits span 2**b steps
        scale_PEGN[p] *= 3.0 / 2 ** ((2, 4, 8)[p] if nested else bits)
    zero_PEGN = None
    if case.format.endswith("zeros"):
        zero_PEGN = (2**bits * torch.rand(shape, generator=generator)).half()
    return PlaneMatrices(
        planes=pack(codes_ENC, bits),
        scale_PEGN=scale_PEGN.half(),
        zero_PEGN=zero_PEGN,
        columns=columns,
        group_size=case.group_size,
    )


def random_experts(case: Case, generator: torch.Generator) -> ExpertWeights:
    E, D, I = case.experts, case.d_model, case.inter_size  # noqa: E741
    rows = 2 * I if case.activation.gated else I
    bits_E = None
    if case.format.startswith("bank"):
        bits_E = torch.tensor([2, 4, 8])[torch.randint(0, 3, (E,), generator=generator)].int()
    return ExpertWeights(
        fc1=random_matrices(case, rows, D, generator),
        fc2=random_matrices(case, D, I, generator),
        activation=case.activation,
        bias1_EN=torch.randn(E, rows, generator=generator) if case.biases else None,
        bias2_ED=torch.randn(E, D, generator=generator) if case.biases else None,
        bits_E=bits_E,
    )


def random_routing(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(T, K) distinct experts of each token and positive weights; expert 0 gets none where there are enough others."""
    scores_TE = torch.rand(case.tokens, case.experts, generator=generator)
    if case.experts > case.top_k:
        scores_TE[:, 0] = -1
    ids_TK = scores_TE.argsort(dim=1, descending=True)[:, : case.top_k].contiguous()
    weights_TK = 0.1 + torch.rand(ids_TK.shape, generator=generator)
    if case.routing == "one":
        ids_TK.fill_(case.experts - 1)
    if case.routing == "dropped":
        flat = torch.arange(ids_TK.numel()).view_as(ids_TK)
        weights_TK[flat % 3 == 0] = 0.0
        ids_TK[flat % 7 == 1] = case.experts
        ids_TK[flat % 7 == 2] = -1
        ids_TK[flat % 7 == 3] = 2**40
    return ids_TK, weights_TK


def tolerance(case: Case) -> float:
    """Bound on the relative error in the root mean square: some roundings of the operands."""
    if case.dtype == torch.float32:
        return 2e-5
    return 1e-2 if case.dtype == torch.bfloat16 else 2e-3


def relative_error(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference over that of `want`; infinite where `got` is not finite."""
    error = (got.double().cpu() - want).square().mean().sqrt() / want.square().mean().sqrt()
    return float(error) if torch.isfinite(error) else float("inf")


def drawn(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, ExpertWeights]:
    """Tokens, ids, weights and experts of a case, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    experts = random_experts(case, generator)
    x_TD = torch.randn(case.tokens, case.d_model, generator=generator).to(case.dtype)
    return x_TD, *random_routing(case, generator), experts


def wanted(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights) -> Tensor:
    """(T, D) float64; zeros and the output of an untouched buffer are far from it."""
    return expert_mlp_reference(x_TD, ids_TK, weights_TK, experts, dtype=torch.float64)
