"""User errors of `decode`: one line each, before anything runs."""

import pytest
import torch

from thermoe.errors import ConfigError
from thermoe.integrations.decode_inputs import check_callback, check_prompts, checked_count, checked_stops

IDS = torch.tensor([[1, 2, 3]])


@pytest.mark.parametrize(
    ("ids", "mask", "said"),
    [
        (None, None, "type NoneType"),
        ([[1, 2]], None, "type list"),
        (IDS.float(), None, "torch.float32"),
        (IDS[0], None, r"shape \(3,\)"),
        (IDS + 100, None, "vocabulary of 64"),
        (IDS - 2, None, "vocabulary of 64"),
        (IDS, [[1, 1, 1]], "attention_mask of type list"),
        (IDS, torch.tensor([[0, 0.5, 1]]), "other values than 0 and 1"),
        (IDS, torch.tensor([[-1, 1, 1]]), "other values than 0 and 1"),
        (IDS, torch.tensor([[float("nan"), 1, 1]]), "other values than 0 and 1"),
    ],
)
def test_prompts_that_cannot_be_decoded(ids, mask, said):
    with pytest.raises(ConfigError, match=said) as caught:
        check_prompts(ids, mask, 64)
    assert "\n" not in str(caught.value)


def test_prompts_at_the_edges_of_the_vocabulary():
    check_prompts(torch.tensor([[0, 63]]), torch.ones(1, 2), 64)
    check_prompts(torch.zeros(2, 0, dtype=torch.long), None, 64)


@pytest.mark.parametrize("count", ["3", None, 2.5, True, 0, -1, 101])
def test_counts_of_new_tokens_that_cannot_be(count):
    with pytest.raises(ConfigError, match="from 1 to 100"):
        checked_count(count, 100)
    assert checked_count(100, 100) == 100


@pytest.mark.parametrize("stops", [3, "ab", [1.5], ["2"], [True], [2**70]])
def test_stop_tokens_that_cannot_be(stops):
    with pytest.raises(ConfigError, match="sequence of token ids"):
        checked_stops(stops)
    assert checked_stops([2, 5]) == (2, 5)


def test_a_callback_that_cannot_be_called():
    with pytest.raises(ConfigError, match="between_steps = 5"):
        check_callback(5)
    check_callback(None)
    check_callback(print)
