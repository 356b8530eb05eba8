"""Forwards for the fused routing, and what they must give: the reference, with exact ties to the lower index."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from thermoe.kernels.route import LayerKnobs, Scoring
from thermoe.kernels.route.fused import Fused, _by_reference, knob_row
from thermoe.kernels.route.launch import Outputs, outputs

# (logits, knob row, correction, live, sums, top_k, columns, flags, scale) to the outputs, on the CPU
Run = Callable[..., Outputs]
MIXED = {
    "price": 0.3,
    "protected_k0": 1.0,
    "max_experts": 5.0,
    "gate_mass": 0.9,
    "skip_ratio": 0.1,
    "bias": 0.3,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    tokens: int
    experts: int = 128
    top_k: int = 8
    dtype: torch.dtype = torch.bfloat16
    knobs: dict = field(default_factory=dict)  # scalars, `bias` as a spread, `allowed` as a share
    union: bool = True
    live: float = 1.0  # share
    live_dtype: torch.dtype = torch.bool
    scoring: dict = field(default_factory=dict)
    renormalise: bool = True
    scale: float = 1.0
    columns: int = 1
    steps: float | None = None  # logits are multiples of it, so that many tie
    stride: int = 0  # beyond the experts
    counted: bool = True


def layer_knobs(case: Case, device: str = "cpu") -> LayerKnobs:
    rng = np.random.default_rng(1)
    experts, scalars = case.experts, dict(case.knobs)
    cost = rng.uniform(0.5, 1.5, experts)
    bias = rng.normal(0.0, 1.0, experts) * scalars.pop("bias", 0.0)
    allowed = rng.random(experts) < scalars.pop("allowed", 1.0)
    allowed[0] = True
    names = ("price", "top_k", "protected_k0", "max_experts", "gate_mass", "skip_ratio", "value_power")
    neutral = (np.inf, case.top_k, case.top_k, 0.0, 1.0, 0.0, 2.0)
    values = [scalars.get(name, value) for name, value in zip(names, neutral, strict=True)]
    row = torch.from_numpy(np.concatenate([cost, bias, allowed, values]).astype(np.float32)).to(device)
    tables = {"cost": row[:experts], "bias": row[experts : 2 * experts], "allowed": row[2 * experts : 3 * experts]}
    return LayerKnobs(**tables, **dict(zip(names, row[3 * experts :], strict=True)), union=case.union, row=row)


def drawn(case: Case, seed: int = 0) -> tuple[Tensor, Tensor | None, Scoring]:
    """Logits, live tokens and the scoring."""
    generator = torch.Generator().manual_seed(seed)
    logits_TE = torch.randn(case.tokens, case.experts, generator=generator)
    if case.steps:
        logits_TE = (logits_TE / case.steps).round() * case.steps
    logits_TE = logits_TE.to(case.dtype)
    if case.stride:
        logits_TE = torch.nn.functional.pad(logits_TE, (0, case.stride), value=9.0)[:, : case.experts]
    live_T = None if case.live == 1.0 else (torch.rand(case.tokens, generator=generator) < case.live)
    scoring = dict(case.scoring)
    if scoring.pop("corrected", False):
        scoring["correction_E"] = torch.randn(case.experts, generator=generator) * 0.2
    return logits_TE, None if live_T is None else live_T.to(case.live_dtype), Scoring(**scoring)


@contextmanager
def ties_to_the_lower_index():
    """torch leaves open which of equal values `topk` takes."""
    before = Tensor.topk

    def topk(values: Tensor, k: int, dim: int = -1):
        ordered = values.sort(dim=dim, descending=True, stable=True)
        return torch.return_types.topk((ordered.values.narrow(dim, 0, k), ordered.indices.narrow(dim, 0, k)))

    Tensor.topk = topk
    try:
        yield
    finally:
        Tensor.topk = before


def flags_of(case: Case, scoring: Scoring) -> list[int]:
    return [int(scoring.sigmoid), scoring.groups, scoring.groups_kept, int(case.renormalise), int(case.union)]


def poisoned(logits_TE: Tensor, top_k: int, columns: int) -> Outputs:
    out = outputs(logits_TE, top_k, columns)
    for tensor in out:
        tensor.fill_(float("nan") if tensor.is_floating_point() else 1 if tensor.dtype is torch.bool else -7)
    return out


def wanted(case: Case, seed: int = 0) -> tuple[Fused, Tensor]:
    logits_TE, live_T, scoring = drawn(case, seed)
    sums = torch.full((2 * case.experts + 4,), 3.0, dtype=torch.float64)
    with ties_to_the_lower_index():
        fused = _by_reference(
            logits_TE, layer_knobs(case), case.top_k, scoring, case.columns, live_T, case.renormalise, case.scale, sums
        )
    return fused, sums


def check(run: Run, case: Case, seed: int = 0) -> None:
    """Everything the kernels write against the reference, from poisoned outputs."""
    logits_TE, live_T, scoring = drawn(case, seed)
    sums = torch.full((2 * case.experts + 4,), 3.0, dtype=torch.float64) if case.counted else None
    out = run(
        logits_TE, knob_row(layer_knobs(case)), scoring.correction_E, live_T, sums, case.top_k, case.columns,
        flags_of(case, scoring), case.scale,
    )  # fmt: skip
    compare(out, sums, case, seed)


def compare(out: Outputs, sums: Tensor | None, case: Case, seed: int = 0) -> None:
    ids_TK, weights_TK, kept_TK, own_ids_TK, loaded_CE, slot_N, offsets_E1, last_3C = (t.cpu() for t in out)
    want, want_sums = wanted(case, seed)
    routing = want.routing
    assert torch.equal(own_ids_TK, routing.own_ids_TK)
    if routing.loaded_CE is not None:
        assert torch.equal(loaded_CE, routing.loaded_CE)
    assert torch.equal(kept_TK, routing.kept_TK)
    assert torch.equal(ids_TK, routing.ids_TK)
    torch.testing.assert_close(weights_TK, routing.weights_TK, rtol=6e-7, atol=1e-37)
    assert torch.equal(offsets_E1, want.plan.offsets_E1)
    assert torch.equal(slot_N, want.plan.slot_N)
    if sums is not None:
        torch.testing.assert_close(sums.cpu(), want_sums, rtol=1e-6, atol=2e-5)
        torch.testing.assert_close(last_3C, want.last_3C, rtol=1e-5, atol=1e-6)


POLICIES = {
    "neutral": {"union": False},
    "union": {"knobs": {"protected_k0": 3.0}},
    "everything": {"knobs": MIXED | {"top_k": 6.0}, "live": 0.7},
    "barred": {"knobs": {"price": 0.2, "protected_k0": 0.0, "allowed": 0.6}, "live": 0.7, "live_dtype": torch.float32},
    "priced": {"knobs": {"price": 0.05, "protected_k0": 0.0, "value_power": 0.5}, "scale": 2.5},
    "most valuable": {"knobs": {"max_experts": 9.0, "protected_k0": 0.0}},
    "values tie": {"knobs": {"max_experts": 9.0, "protected_k0": 0.0, "value_power": 0.0}, "live": 0.7},
    "nobody lives": {"knobs": {"protected_k0": 2.0, "max_experts": 3.0}, "live": 0.0},
    "ties": {"knobs": {"protected_k0": 2.0, "gate_mass": 0.8}, "steps": 0.5},
    "ties with bias": {"knobs": {"protected_k0": 1.0, "bias": 0.4}, "steps": 1.0},
    "few allowed": {"knobs": {"allowed": 0.02, "protected_k0": 2.0}},
    "skips": {"union": False, "knobs": {"skip_ratio": 0.5, "top_k": 7.0}, "live": 0.5},
    "uncounted": {"knobs": {"protected_k0": 2.0}, "counted": False},
}
SCORINGS = {
    "sigmoid": {"scoring": {"sigmoid": True}, "scale": 2.5},
    "corrected": {"scoring": {"sigmoid": True, "corrected": True}, "renormalise": False},
    "groups": {"scoring": {"sigmoid": True, "corrected": True, "groups": 8, "groups_kept": 3}, "scale": 2.5},
    "softmax groups": {"scoring": {"groups": 4, "groups_kept": 2}, "renormalise": False},
}
