import pandas as pd
import pytest

from thermoe.cost.tables import group_arrays, group_table
from thermoe.errors import DataError

PRODUCT = {"m": [16.0], "n": [64.0], "k": [64.0], "latency_ms": [1.0]}
LAYER = {
    "num_tokens": [16.0],
    "hidden_size": [64.0],
    "inter_size": [32.0],
    "topk": [2.0],
    "num_experts": [8.0],
    "latency_ms": [1.0],
}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (PRODUCT | {"m": [1e300]}, "column m holds 1e\\+300"),
        (PRODUCT | {"latency_ms": [1e-300]}, "column latency_ms"),
        (LAYER | {"num_tokens": [1e19]}, "column num_tokens"),
        (LAYER | {"num_experts": [2e9]}, "column num_experts"),
        (LAYER | {"topk": [9.0]}, "more experts per token"),
        (LAYER | {"distinct_experts": [9.0]}, "touches 9 experts"),
        (LAYER | {"distinct_experts": [5.0], "moe_ep_size": [2.0]}, "touches 5 experts"),
    ],
)
def test_figures_that_cannot_be_are_refused_before_anything_is_drawn_or_fitted(table, words):
    with pytest.raises(DataError, match=words) as err:
        group_table(pd.DataFrame(table))
    assert "\n" not in str(err.value)


def test_a_column_there_twice_is_refused():
    table = pd.DataFrame(PRODUCT)
    with pytest.raises(DataError, match="2 columns named m"):
        group_table(pd.concat([table, table[["m"]]], axis=1))


@pytest.mark.parametrize("latency", [["a"], [[1.0, 2.0]], 1.0, [[1.0], [2.0, 3.0]]])
def test_targets_that_are_no_column_of_numbers_are_refused(latency):
    with pytest.raises(DataError, match="y_latency"):
        group_arrays(None, pd.DataFrame(PRODUCT), latency, None)
