"""The dispatch plan's kernels, on a GPU or in the interpreter."""

import pytest
import torch
from plan_cases import CASES, drawn, restated

from thermoe.kernels.dispatch import triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(ids_TK, weights_TK, num_experts):
    slot_N, offsets_E1 = kernels.dispatch_plan_triton(ids_TK.to(DEVICE), weights_TK.to(DEVICE), num_experts)
    slots, offsets = restated(ids_TK, weights_TK, num_experts)
    assert slot_N.tolist() == slots
    assert offsets_E1.tolist() == offsets


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("many", [False, True])
def test_plan(case, many, monkeypatch):
    if many:
        monkeypatch.setattr(kernels, "_FEW_SLOTS", 0)
    check(*drawn(**case))


@pytest.mark.parametrize("many", [False, True])
def test_an_id_counts_with_all_its_bits(many, monkeypatch):
    if many:
        monkeypatch.setattr(kernels, "_FEW_SLOTS", 0)
    check(torch.tensor([[2**40, 1], [2**32 + 1, -(2**63)], [0, 2]]), torch.ones(3, 2), 3)


def test_blocks_of_several_steps(monkeypatch):
    monkeypatch.setattr(kernels, "_FEW_SLOTS", 0)
    monkeypatch.setattr(kernels, "_MAX_BLOCKS", 2)
    check(*drawn(tokens=129, top_k=4, experts=5, seed=3))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 1000, 4096, 32768])
def test_plan_at_full_size(tokens):
    check(*drawn(tokens=tokens, top_k=8, experts=128, seed=tokens))
