"""Questions that have no answer end in one line, and readings that cannot be are taken for silence."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from cost_rows import QWEN3, synthetic_rows

from thermoe.cost.database import CostDatabase
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.prediction import Hinges
from thermoe.cost.work import cases_of
from thermoe.errors import CostError, DataError
from thermoe.types import Kind, MoEShape, StepWork, SysState

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


@pytest.mark.parametrize(
    ("rows", "distinct"), [(1024, 129), (16, 17), (0, 1), (128, 0), (8, 8.001), ("many", 1), (128, [1, 2])]
)
def test_batches_that_no_layer_sees_have_no_cost(rows, distinct):
    with pytest.raises(
        CostError, match=r"routed rows on .* distinct experts of 128|routed_rows: needs|counts of shapes"
    ):
        MODEL.predict("expert_mlp", QWEN3, rows, distinct)
    if not isinstance(distinct, list):
        with pytest.raises(CostError, match=r"routed rows on .* distinct experts of 128: needs|routed_rows: needs"):
            MODEL.predict_many("expert_mlp", QWEN3, [128, rows], [16, distinct])


def test_experts_beyond_those_of_the_layer_are_refused_by_tokens_too():
    with pytest.raises(CostError, match="32 routed rows on 40 distinct experts"):
        MODEL.get_cost("expert_mlp", 4, shape=QWEN3, distinct_experts=40)
    for tokens in (1, 2, 3, 10**6):  # the experts of random routing are k, or E, but for the last place
        for shape in (QWEN3, replace(QWEN3, num_experts=7, top_k=3), replace(QWEN3, num_experts=8, top_k=8)):
            assert MODEL.get_cost("expert_mlp", tokens, shape=shape).latency_s.value > 0
    assert MODEL.predict("expert_mlp", QWEN3, 0, 0).latency_s.value > 0  # a GPU that got no row


def test_the_routing_view_still_looks_one_expert_further():
    full = replace(QWEN3, num_experts=8, top_k=8)
    for shape, tokens in ((QWEN3, 1), (full, 1), (full, 64)):
        view = MODEL.routing_cost(shape, tokens)
        assert view.latency_s > 0
        assert view.distance < 0.5
    with pytest.raises(CostError, match="8 routed rows on 9 distinct experts"):
        MODEL.predict("expert_mlp", QWEN3, 8, 9)


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


def test_bits_and_formats_say_the_same_of_one_prediction_and_of_many():
    for bits in (3, 2.5, 16):
        one = MODEL.predict("expert_mlp", QWEN3, 128, 64, bits=bits)
        many = MODEL.predict_many("expert_mlp", QWEN3, [128.0], [64.0], bits=bits)
        assert one.latency_s.value == pytest.approx(many.latency_s[0])
    few, usual = (MODEL.predict("expert_mlp", QWEN3, 128, 64, bits=bits).latency_s.value for bits in (3, None))
    assert few < 0.3 * usual
    packed = MODEL.predict("expert_mlp", QWEN3, 128, 64, dtype="int4")
    assert packed.latency_s == MODEL.predict("expert_mlp", QWEN3, 128, 64, bits=4).latency_s
    mixed = MODEL.layer(QWEN3, bits=2.5).predict(0, (16, 2048))
    assert mixed.latency_s.value == MODEL.predict("expert_mlp", QWEN3, 16, 1, bits=2.5).latency_s.value


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"bits": 0}, "bits = 0: needs one number over 0"),
        ({"bits": -4}, "bits = -4"),
        ({"bits": math.nan}, "bits = nan"),
        ({"bits": "four"}, "bits: needs numbers"),
        ({"dtype": "nope"}, "format nope is not known: choose from float32"),
        ({"dtype": "int4", "bits": 8}, "int4 holds weights of 4 bits, not of 8"),
    ],
)
def test_precisions_that_cannot_be_have_no_cost(asked, message):
    for ask in (MODEL.predict, MODEL.predict_many):
        with pytest.raises(CostError, match=message):
            ask("expert_mlp", QWEN3, 128, 64, **asked)


@pytest.mark.parametrize("loads", [3.0, "many", [1.0] * 127, [1e300] * 128, [-1.0] * 128, [math.nan] * 128, []])
def test_loads_that_cannot_be_have_no_cost(loads):
    for ask in (MODEL.layer(QWEN3).cost_per_expert, lambda n: MODEL.cost_per_expert(QWEN3, n)):
        with pytest.raises(CostError, match="loads"):
            ask(loads)


def test_a_batch_is_a_number():
    with pytest.raises(CostError, match="batch_size"):
        MODEL.get_cost("expert_mlp", "four", shape=QWEN3)


def test_a_convex_cost_stays_one_under_any_optimisation_of_python():
    with pytest.raises(CostError, match="must not be negative"):
        Hinges(np.array([1.0, -1.0]), np.zeros(2))


def test_shapes_are_a_table():
    with pytest.raises(DataError, match="X_shape is a list: needs a pandas table"):
        KernelCostModel().fit(None, [[1, 2]], [1.0], None)


_WHAT_A_SHAPE_IS = "needs a MoEShape of thermoe.types"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("qwen3-30b-a3b", rf"shape = 'qwen3-30b-a3b': {_WHAT_A_SHAPE_IS}, such as NAMED_SHAPES\['qwen3-30b-a3b'\]"),
        ("my-model", rf"shape = 'my-model': {_WHAT_A_SHAPE_IS}; NAMED_SHAPES has qwen3-30b-a3b, mixtral-8x7b"),
        (None, rf"shape = None: {_WHAT_A_SHAPE_IS}"),
        ((2048, 768, 128, 8), rf"shape = \(2048, 768, 128, 8\): {_WHAT_A_SHAPE_IS}"),
    ],
)
@pytest.mark.parametrize(
    "ask",
    [
        lambda shape: MODEL.predict("expert_mlp", shape, 128, 82),
        lambda shape: MODEL.predict_many("expert_mlp", shape, [128], [82]),
        lambda shape: MODEL.get_cost("expert_mlp", 16, shape=shape),
        lambda shape: MODEL.get_cost("expert_mlp", 16, shape=shape, distinct_experts=82),
        lambda shape: MODEL.cost_per_expert(shape, np.ones(128)),
        lambda shape: MODEL.routing_cost(shape, 16),
        MODEL.layer,
    ],
)
def test_a_layer_is_given_by_its_shape_not_by_its_name(ask, shape, message):
    with pytest.raises(CostError, match=message):
        ask(shape)


def test_a_step_is_priced_as_a_shape():
    work = StepWork(shape=QWEN3, num_tokens=16, distinct_experts=[82.0] * 48, routed_rows=[128.0] * 48)
    assert MODEL.predict_step(work, QWEN3).latency_s > 0
    with pytest.raises(CostError, match=_WHAT_A_SHAPE_IS):
        MODEL.predict_step(work, "qwen3-30b-a3b")
    with pytest.raises(CostError, match="work = 'qwen3-30b-a3b': needs a StepWork"):
        MODEL.predict_step("qwen3-30b-a3b")


@pytest.mark.parametrize("tokens", ["many", None, [16, 32], math.nan, 0])
def test_tokens_to_route_are_one_number(tokens):
    with pytest.raises(CostError, match="num_tokens"):
        MODEL.routing_cost(QWEN3, tokens)
    with pytest.raises(CostError, match="batch_size"):
        MODEL.get_cost("expert_mlp", tokens, shape=QWEN3)


def test_a_state_is_one():
    with pytest.raises(CostError, match=r"state = \{'temp_c': 40\}: needs a SysState of thermoe.types or None"):
        MODEL.predict("expert_mlp", QWEN3, 128, 82, state={"temp_c": 40})


def test_an_implementation_that_was_not_measured_is_told_which_were():
    wide = [replace(row, impl="loop", dtype="float32") for row in synthetic_rows()]
    packed = [replace(row, impl="thermoe", dtype="int4") for row in synthetic_rows()[::2]]
    model = KernelCostModel().fit(CostDatabase([*wide, *packed]))

    def asked(impl, **precision):
        with pytest.raises(CostError) as caught:
            model.predict("expert_mlp", QWEN3, 128, 64, impl=impl, **precision)
        return str(caught.value)

    known = "known are loop in float32 (32 bit)"
    nothing = f"was not measured by any implementation, nor by loop: {known}, thermoe in int4 (4 bit)"
    assert asked("loop", bits=16) == f"expert_mlp at 16 bit {nothing}"
    assert asked("loop", dtype="bf16") == f"expert_mlp in bfloat16 {nothing}"
    assert asked("magic", bits=32) == f"expert_mlp at 32 bit has no measured implementation magic: {known}"
    with pytest.raises(
        CostError, match=r"gemm at 16 bit was not measured by any.* nor by torch: leave impl out for what"
    ):
        model.predict("gemm", QWEN3, 128, 1, impl="torch")


def test_cases_of_no_measured_implementation_get_the_answer_of_predict():
    """Without a name the most measured implementation answers, with its own kernels, as in `predict`."""
    model = KernelCostModel.shipped()
    for dtype in ("bfloat16", "int4"):
        asked = cases_of("expert_mlp", QWEN3, 128.0, 82.0, dtype=dtype)
        told = model.predict("expert_mlp", QWEN3, 128, 82, dtype=dtype)
        priced = model.predict_cases(asked)
        assert priced.latency_s[0] == pytest.approx(told.latency_s.value)
        assert priced.energy_j[0] == pytest.approx(told.energy_j.value)
        assert priced.is_covered[0]
        other = model.predict_cases(cases_of("expert_mlp", QWEN3, 128.0, 82.0, impl="nobody", dtype=dtype))
        assert not other.is_covered[0]
    with pytest.raises(CostError, match="format bank is not known"):
        model.predict_cases(cases_of("expert_mlp", QWEN3, 128.0, 82.0, dtype="bank"))


def test_tokens_as_text_and_counts_that_do_not_pair_are_refused():
    model = KernelCostModel.shipped()
    with pytest.raises(CostError, match="needs one number of tokens"):
        model.get_cost("expert_mlp", "16", shape=QWEN3)
    with pytest.raises(CostError, match="needs as many of each"):
        model.predict_many("expert_mlp", QWEN3, [8, 64], [8, 40, 82])


def test_a_model_of_an_older_kind_is_refused_in_one_line(tmp_path):
    path = tmp_path / "old.model.json"
    KernelCostModel().save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"schema": content["schema"] - 1}))
    with pytest.raises(DataError, match="schema"):
        KernelCostModel.load(path)
