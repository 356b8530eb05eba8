"""The combination through its public function on the CPU: against sums written out slot by slot, and bad input."""

import pytest
import torch
from combine_cases import NUM_EXPERTS, by_hand, drawn

from thermoe.errors import ConfigError
from thermoe.kernels.combine import combine, combine_reference


@pytest.mark.parametrize(("num_tokens", "top_k", "width"), [(1, 1, 1), (7, 2, 129), (63, 8, 5), (129, 3, 2880)])
def test_equals_the_sum_slot_by_slot(num_tokens, top_k, width):
    y_ND, weights_TK, ids_TK = drawn(num_tokens, top_k, width)
    want_TD = by_hand(y_ND, weights_TK, ids_TK)
    out_TD = torch.full((num_tokens, width), float("nan"))

    assert combine(y_ND, weights_TK, ids_TK, NUM_EXPERTS, out_TD) is out_TD

    torch.testing.assert_close(out_TD.double(), want_TD, atol=1e-5, rtol=1e-5)
    in_double_TD = combine_reference(y_ND, weights_TK, ids_TK, NUM_EXPERTS, dtype=torch.float64)
    torch.testing.assert_close(in_double_TD, want_TD, atol=1e-13, rtol=1e-13)
    assert want_TD.abs().max() > 0.1  # zeros must not pass


def test_half_precision_rows_are_summed_in_float32_and_rounded_once():
    y_ND = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16)
    ones_TK, ids_TK = torch.ones(1, 3), torch.tensor([[0, 1, 2]])
    assert combine(y_ND, ones_TK, ids_TK, NUM_EXPERTS).item() == 258.0  # bf16 sums would stay at 256
    assert combine(y_ND, ones_TK, ids_TK, NUM_EXPERTS).dtype == torch.bfloat16


def test_rows_that_are_not_contiguous_and_no_tokens():
    y_ND, weights_TK, ids_TK = drawn(6, 2, 8)
    crossed_ND = y_ND.T.contiguous().T
    torch.testing.assert_close(
        combine(crossed_ND, weights_TK, ids_TK, NUM_EXPERTS), combine(y_ND, weights_TK, ids_TK, NUM_EXPERTS)
    )
    assert combine(y_ND[:0], weights_TK[:0], ids_TK[:0], NUM_EXPERTS).shape == (0, 8)


def test_a_token_without_kept_slots_is_zero():
    y_ND, _, ids_TK = drawn(4, 2, 3)
    out_TD = combine(y_ND, torch.zeros(4, 2), ids_TK, NUM_EXPERTS)
    assert torch.equal(out_TD, torch.zeros(4, 3))


def _spoilt():
    y_ND, weights_TK, ids_TK = drawn(4, 2, 3)
    yield "needed", (y_ND[:7], weights_TK, ids_TK), {}
    yield "needed", (y_ND, weights_TK[:, :1], ids_TK), {}
    yield "needed", (y_ND, weights_TK.flatten(), ids_TK.flatten()), {}
    yield "integers", (y_ND, weights_TK, weights_TK), {}
    yield "integers", (y_ND, ids_TK, ids_TK), {}
    yield "one device", (y_ND.to("meta"), weights_TK, ids_TK), {}
    yield "output of shape", (y_ND, weights_TK, ids_TK), {"out_TD": torch.zeros(4, 4)}
    yield "contiguous", (y_ND, weights_TK, ids_TK), {"out_TD": torch.zeros(3, 4).T}


@pytest.mark.parametrize(("said", "tensors", "options"), list(_spoilt()))
def test_refuses_what_does_not_fit(said, tensors, options):
    with pytest.raises(ConfigError, match=said):
        combine(*tensors, NUM_EXPERTS, **options)
