"""The combination's kernel, on a GPU or in the interpreter, against sums written out slot by slot."""

import pytest
import torch
from combine_cases import NUM_EXPERTS, by_hand, drawn

from thermoe.kernels.combine import combine
from thermoe.kernels.combine.triton import combine_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize(("num_tokens", "top_k", "width"), [(1, 1, 1), (7, 2, 129), (63, 8, 5), (5, 3, 1030)])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_equals_the_sum_slot_by_slot(num_tokens, top_k, width, dtype):
    y_ND, weights_TK, ids_TK = drawn(num_tokens, top_k, width, dtype)
    want_TD = by_hand(y_ND, weights_TK, ids_TK)
    out_TD = torch.full((num_tokens, width), float("nan"), dtype=dtype, device=DEVICE)

    combine_triton(y_ND.to(DEVICE), weights_TK.to(DEVICE), ids_TK.to(DEVICE), NUM_EXPERTS, out_TD)

    bound = TOLERANCE[dtype]
    torch.testing.assert_close(out_TD.double().cpu(), want_TD, atol=bound, rtol=bound)
    assert want_TD.abs().max() > 0.1  # zeros must not pass


def test_weights_and_ids_of_narrow_types():
    y_ND, weights_TK, ids_TK = drawn(3, 2, 16)
    ids_TK = ids_TK.clamp(max=2**30).int()
    out_TD = torch.full((3, 16), float("nan"), device=DEVICE)
    combine_triton(y_ND.to(DEVICE), weights_TK.bfloat16().to(DEVICE), ids_TK.to(DEVICE), NUM_EXPERTS, out_TD)
    want_TD = by_hand(y_ND, weights_TK.bfloat16(), ids_TK)
    torch.testing.assert_close(out_TD.double().cpu(), want_TD, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
def test_same_input_gives_the_same_bits_in_a_graph():
    y_ND, weights_TK, ids_TK = (tensor.cuda() for tensor in drawn(1000, 8, 2048, torch.bfloat16))
    first_TD = combine(y_ND, weights_TK, ids_TK, NUM_EXPERTS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again_TD = combine(y_ND, weights_TK, ids_TK, NUM_EXPERTS)
    graph.replay()
    assert torch.equal(first_TD, again_TD)
    assert torch.isfinite(first_TD).all()
