"""Float64 truth of each operation, and what makes a result wrong.

Shapes: T tokens, K experts per token, N = T K slots, E experts, D model width.
Truth is computed here from codes, scales and scores, by other means than those of any implementation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from benchmarks.kernels.cell import Cell, LayerInputs, slot_rows, union_k0
from benchmarks.kernels.formats import FORMATS
from benchmarks.kernels.registry import Entry, Output
from thermoe.kernels.expert_mlp.weights import ExpertWeights
from thermoe.profiling.operations import relative_error
from thermoe.profiling.random_matrices import one_expert

CHECKED_TOKENS = 64
WORST_TOKEN = 3.0  # one token may err so many times more than all of them together
FLOAT32_ERROR = 1e-4
_NO_PLAN = "the plan is not the stable order of these slots by expert, dropped ones last"
TIE = 1e-5  # gates this near to each other may change places


@dataclass(frozen=True, slots=True)
class Verdict:
    """Root mean square error relative to the truth; and what is wrong, None where nothing is."""

    rel_error: float
    wrong: str | None


def check(entry: Entry, cell: Cell, dtype: str, layer: int, output: Output) -> Verdict:
    """Hold one layer's output against the truth."""
    if entry.op == "routing":
        return _check_routing(entry, cell.input(layer), union_k0(cell.shape), output)
    if entry.op == "dispatch":
        given = cell.input(layer)
        holds = _plan_holds(given.ids_TK, given.weights_TK != 0, output[0], output[1], cell.shape.num_experts)
        return Verdict(0.0, None) if holds else Verdict(float("inf"), _NO_PLAN)
    got = output[0]
    assert got is not None
    if not bool(torch.isfinite(got).all()):
        return Verdict(float("inf"), "the output holds NaN or infinities, or was not all written")
    if entry.op == "dequantize":
        return _check_matrix(got, cell.store.layers(dtype, layer + 1)[layer], dtype, cell.device)
    tokens_S = _sample(cell.num_tokens, cell.device)
    limit = FORMATS[dtype].max_rel_error if cell.device.type == "cuda" else FLOAT32_ERROR
    return _compare(got[tokens_S], _reference(entry.op, cell, dtype, layer, tokens_S), limit)


def _sample(num_tokens: int, device: torch.device) -> Tensor:
    return torch.linspace(0, num_tokens - 1, min(CHECKED_TOKENS, num_tokens), device=device).round().long()


def _compare(got_SD: Tensor, want_SD: Tensor, limit: float) -> Verdict:
    rel_error = relative_error(got_SD, want_SD)
    off_S = (got_SD.double() - want_SD).square().mean(dim=-1).sqrt()
    worst = float((off_S / want_SD.square().mean(dim=-1).sqrt()).max())
    if not rel_error <= limit:
        return Verdict(rel_error, f"relative error {rel_error:.2g} against float64, at most {limit:.2g} is rounding")
    if not worst <= WORST_TOKEN * limit:
        return Verdict(rel_error, f"relative error {worst:.2g} in one row against float64")
    return Verdict(rel_error, None)


def _reference(op: str, cell: Cell, dtype: str, layer: int, tokens_S: Tensor) -> Tensor:
    key = (op, dtype, layer)
    if key not in cell.references:
        given = cell.input(layer)
        if op == "combine":
            weights_TK = given.weights_TK.double()
            rows_TKD = slot_rows(cell, layer).double().view(*weights_TK.shape, -1)[tokens_S]
            cell.references[key] = torch.einsum("skd,sk->sd", rows_TKD, weights_TK[tokens_S])
        else:
            cell.references[key] = expert_mlp_float64(given, cell.store.layers(dtype, layer + 1)[layer], tokens_S)
    return cell.references[key]


def expert_mlp_float64(given: LayerInputs, experts: ExpertWeights, tokens_S: Tensor) -> Tensor:
    """SwiGLU experts on some tokens, one expert after the other, in float64."""
    x_SD, ids_SK = given.x_TD[tokens_S].double(), given.ids_TK[tokens_S]
    weights_SK = given.weights_TK[tokens_S].double()
    out_SD = torch.zeros_like(x_SD)
    for expert in ids_SK.unique().tolist():
        rows, slots = (ids_SK == expert).nonzero(as_tuple=True)
        gate, up = (x_SD[rows] @ one_expert(experts.fc1, expert, experts.bits_E).T).chunk(2, dim=-1)
        y_RD = (nn_functional.silu(gate) * up) @ one_expert(experts.fc2, expert, experts.bits_E).T
        out_SD.index_add_(0, rows, y_RD * weights_SK[rows, slots].unsqueeze(-1))
    return out_SD


def _check_matrix(got_ENC: Tensor, experts: ExpertWeights, dtype: str, device: torch.device) -> Verdict:
    limit = FORMATS[dtype].max_rel_error if device.type == "cuda" else FLOAT32_ERROR
    picked = sorted({0, got_ENC.shape[0] - 1})
    want = torch.stack([one_expert(experts.fc2, expert, experts.bits_E) for expert in picked])
    return _compare(got_ENC[picked].flatten(0, 1), want.flatten(0, 1), limit)


def _check_routing(entry: Entry, given: LayerInputs, k0: int, output: Output) -> Verdict:
    """The best experts within the allowed set, their renormalised gates, and the plan of these ids."""
    ids_TK, weights_TK, slot_N, offsets_E1 = output
    assert ids_TK is not None
    assert weights_TK is not None
    gates_TE = given.logits_TE.double().softmax(dim=-1)
    num_experts, ids_TK = gates_TE.shape[1], ids_TK.long()
    if bool(((ids_TK < 0) | (ids_TK >= num_experts)).any()):
        return Verdict(float("inf"), f"an id lies outside 0..{num_experts - 1}, or was not written")
    allowed_TE = gates_TE
    if entry.unites:
        loaded = gates_TE.topk(k0, dim=-1).indices.unique()
        allowed_TE = torch.zeros_like(gates_TE).index_copy(1, loaded, gates_TE[:, loaded])
    kept_TK = weights_TK != 0
    want_TK = allowed_TE.topk(ids_TK.shape[1], dim=-1).values  # 0: the batch loads too few, the slot is dropped
    allowed_TK = allowed_TE.gather(1, ids_TK)
    got_TK = allowed_TK.where(kept_TK, 0.0).sort(dim=-1, descending=True).values
    barred_TK = kept_TK & (allowed_TK == 0)
    wrong = int((((want_TK - got_TK).abs() > TIE * want_TK.abs()) | barred_TK).any(dim=-1).sum())
    chosen_TK = gates_TE.gather(1, ids_TK).where(kept_TK, 0.0)
    rel_error = relative_error(weights_TK, chosen_TK / chosen_TK.sum(dim=-1, keepdim=True))
    if wrong:
        return Verdict(rel_error, f"{wrong} tokens did not get their best allowed experts")
    if not rel_error <= FLOAT32_ERROR:
        return Verdict(rel_error, f"weights are off by {rel_error:.2g} relative to float64")
    if entry.plan_included and not _plan_holds(ids_TK, kept_TK, slot_N, offsets_E1, num_experts):
        return Verdict(rel_error, _NO_PLAN)
    return Verdict(rel_error, None)


def _plan_holds(
    ids_TK: Tensor, kept_TK: Tensor, slot_N: Tensor | None, offsets_E1: Tensor | None, num_experts: int
) -> bool:
    if slot_N is None or offsets_E1 is None:
        return False
    place_N = ids_TK.where(kept_TK, num_experts).flatten()
    counts_E = torch.bincount(place_N, minlength=num_experts + 1)[:num_experts]
    want_E1 = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)])
    kept = int(want_E1[-1])
    got_N, want_N = slot_N.long(), torch.argsort(place_N, stable=True)
    rest_agrees = torch.equal(got_N[kept:].sort().values, want_N[kept:].sort().values)
    return rest_agrees and torch.equal(got_N[:kept], want_N[:kept]) and torch.equal(offsets_E1.long(), want_E1)
