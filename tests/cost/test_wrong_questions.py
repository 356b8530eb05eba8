"""Questions that have no answer end in one line, and readings that cannot be are taken for silence."""

import math
from dataclasses import replace

import numpy as np
import pytest
from cost_rows import QWEN3

from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.errors import CostError
from thermoe.types import Kind, MoEShape, SysState

MODEL = KernelCostModel()


def state(**values):
    return SysState(time_s=0.0, wall_time_s=0.0, source="test", kind=Kind.SIMULATED, **values)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"inter_size": -4},
        {"inter_size": math.nan},
        {"hidden_size": 2**70},
        {"num_experts": 0},
        {"top_k": 0},
        {"top_k": 129},
    ],
)
def test_layers_that_cannot_be_have_no_cost(change):
    shape: MoEShape = replace(QWEN3, **change)
    with pytest.raises(CostError, match="need sizes of at least 1"):
        MODEL.predict("expert_mlp", shape, 128, 64)
    with pytest.raises(CostError, match="need sizes of at least 1"):
        MODEL.predict_many("gemm", shape, [128.0, 1.0], 1.0)


@pytest.mark.parametrize(("rows", "distinct"), [(1e300, 64), (128, 1e300), (math.inf, 64), (-1, 64), (128, math.nan)])
def test_counts_that_cannot_be_have_no_cost(rows, distinct):
    with pytest.raises(CostError, match="routed rows and distinct experts"):
        MODEL.predict("expert_mlp", QWEN3, rows, distinct)


@pytest.mark.parametrize("context", [0, -5, math.nan, 1e300])
def test_a_cache_needs_positions(context):
    with pytest.raises(CostError, match="context"):
        MODEL.predict("attention_decode", QWEN3, 4, 1, context=context)


@pytest.mark.parametrize(
    "reading",
    [
        {"temp_c": math.nan},
        {"temp_c": -500.0},
        {"temp_c": 1e300},
        {"power_limit_w": math.nan},
        {"power_limit_w": 0.0},
        {"power_limit_w": -5.0},
    ],
)
def test_readings_that_cannot_be_say_nothing(reading):
    silent = MODEL.predict("expert_mlp", QWEN3, 128, 64, state=state())
    assert MODEL.predict("expert_mlp", QWEN3, 128, 64, state=state(**reading)) == silent
    assert MODEL.predict("expert_mlp", QWEN3, 128, 64, state=state(temp_c=90.0)) != silent


@pytest.mark.parametrize(
    ("expert", "shape"),
    [(1.5, (4, 2048)), ("0", (4, 2048)), (128, (4, 2048)), (0, 4), (0, None), (0, (4.5, 2048)), (0, (4, 5)), (0, "42")],
)
def test_an_expert_answers_for_rows_of_its_width_alone(expert, shape):
    with pytest.raises(CostError, match=r"expert|input of shape"):
        MODEL.layer(QWEN3).predict(expert, shape)


@pytest.mark.parametrize("loads", [1.0, ["a"] * 128, [[1, 2], [3]], np.ones(127), np.full(128, np.nan)])
def test_loads_of_a_layer_are_numbers_for_each_expert(loads):
    with pytest.raises(CostError, match="loads"):
        MODEL.layer(QWEN3).cost_per_expert(loads)
    with pytest.raises(CostError, match="bits"):
        MODEL.layer(QWEN3, bits=["a"] * 128)
