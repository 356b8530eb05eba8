import numpy as np
import pytest
from cost_rows import INDEPENDENT_TABLE, QWEN3, row_of, synthetic_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from thermoe.cost.database import CostDatabase
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.law import physical_law
from thermoe.cost.prediction import Hinges
from thermoe.cost.roofline import H200
from thermoe.cost.work import work_of
from thermoe.errors import CostError
from thermoe.types import Kind, MoEShape, SysState

MODELS = {
    "roofline": KernelCostModel(),
    "synthetic": KernelCostModel().fit(CostDatabase(synthetic_rows(noise=0.05))),
    "table": KernelCostModel().fit(
        CostDatabase([row_of(QWEN3, n, d, t * 1e-6, e * 1e-3) for n, d, t, e in INDEPENDENT_TABLE])
    ),
    "shipped": KernelCostModel.shipped(),
}
names = st.sampled_from(sorted(MODELS))
tokens = st.sampled_from([1, 2, 16, 64, 512, 4096])
loads = st.floats(0.0, 50000.0)


def both_parts(name, num_tokens):
    view = MODELS[name].routing_cost(QWEN3, num_tokens)
    return view.load_latency_s, view.load_energy_j


@given(names, tokens, loads, loads, st.floats(0.0, 1.0))
@settings(max_examples=300, deadline=None)
def test_load_part_is_convex_along_random_segments(name, num_tokens, a, b, t):
    for phi in both_parts(name, num_tokens):
        chord = (1 - t) * float(phi(a)) + t * float(phi(b))
        assert float(phi((1 - t) * a + t * b)) <= chord + 1e-9 * (1 + abs(chord)) * chord + 1e-15


@given(names, tokens, loads, loads)
@settings(max_examples=200, deadline=None)
def test_load_part_never_falls_and_is_zero_at_zero(name, num_tokens, a, b):
    for phi in both_parts(name, num_tokens):
        assert phi(0.0) == 0.0
        assert phi(min(a, b)) <= phi(max(a, b))


@given(names, st.lists(loads, min_size=4, max_size=4), st.lists(loads, min_size=4, max_size=4), st.floats(0.0, 1.0))
@settings(max_examples=200, deadline=None)
def test_law_below_the_power_limit_is_convex_in_its_work(name, a, b, t):
    """Rows and experts as real numbers: what phi is made of is itself convex."""
    model = MODELS[name]
    laws = [fitted.law for (op, _, _), fitted in model.operations_.items() if op == "expert_mlp"]
    law = laws[0] if laws else physical_law(H200, 16)
    ends = np.array(a[:2]), np.array(b[:2])
    middle = (1 - t) * ends[0] + t * ends[1]
    rows, experts = np.array([ends[0][0], ends[1][0], middle[0]]), np.array([ends[0][1], ends[1][1], middle[1]])
    work = work_of("expert_mlp", QWEN3, rows, experts, 16)
    for values in (law.latency_s(work), law.dynamic_energy_j(work)):
        chord = (1 - t) * values[0] + t * values[1]
        assert values[2] <= chord * (1 + 1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_tokens", [1, 16, 64])
def test_view_is_close_to_the_prediction_in_decode_and_its_distance_is_the_one_reported(name, num_tokens):
    model = MODELS[name]
    view = model.routing_cost(QWEN3, num_tokens)
    assert view.distance < 0.12
    rows = num_tokens * 8
    for distinct in np.unique(np.linspace(8, min(128, rows), 5).round()):
        load_E = np.zeros(128)
        load_E[: int(distinct)] = rows / distinct
        accurate = model.predict_many("expert_mlp", QWEN3, rows, distinct)
        assert view.layer(load_E).latency_s == pytest.approx(accurate.latency_s[0], rel=0.25)


@pytest.mark.parametrize("num_tokens", [16, 64])
def test_rows_that_fit_into_an_experts_tiles_anyway_add_no_arithmetic(num_tokens):
    """The measured product takes 128 rows of an expert at least, far more than these tokens bring."""
    view = MODELS["table"].routing_cost(QWEN3, num_tokens)
    assert view.distance < 0.02
    beside_s, arithmetic_s, *_ = view.load_latency_s.slopes
    assert 0.0 <= arithmetic_s < 1e-3 * beside_s


def test_a_prediction_that_bends_is_followed_by_a_third_line():
    """64 tokens on 8 to 40 experts take Thermoe's kernel as long: it reads an expert once for every 24 rows."""
    view = MODELS["shipped"].routing_cost(QWEN3, 64)
    assert len(view.load_latency_s.slopes) == 3
    assert view.distance < 0.08
    ends = MODELS["shipped"].predict_many("expert_mlp", QWEN3, 512, np.array([8, 38, 128])).latency_s
    assert ends[1] < 1.2 * ends[0] < 0.5 * ends[2]
    assert view.latency_s == pytest.approx((ends[2] - ends[1]) / 90, rel=0.15)


@pytest.mark.parametrize("bits", [16.0, 4.0, 2.0])
@pytest.mark.parametrize("sizes", [(7168, 2048, 256, 8), (2880, 2880, 32, 4), (2048, 1024, 64, 8), (2048, 768, 128, 8)])
def test_a_bend_takes_neither_an_experts_cost_away_nor_the_power_limit(sizes, bits, monkeypatch):
    names = ("hidden_size", "inter_size", "num_experts", "top_k")
    shape = MoEShape(num_layers=1, **dict(zip(names, sizes, strict=True)))

    def highest_w(view, rows):
        powers = []
        for distinct in np.unique(np.round(np.linspace(shape.top_k, min(shape.num_experts, rows), 9))):
            load_E = np.zeros(shape.num_experts)
            load_E[: int(distinct)] = rows / distinct
            cost = view.layer(load_E)
            powers.append(cost.energy_j / cost.latency_s)
        return max(powers)

    for num_tokens in (64, 128, 512, 4096):
        rows = num_tokens * shape.top_k
        bent = MODELS["shipped"].routing_cost(shape, num_tokens, bits=bits)
        with monkeypatch.context() as without:
            without.setattr("thermoe.cost.routing_view._closest", lambda parts, *_: parts)
            straight = MODELS["shipped"].routing_cost(shape, num_tokens, bits=bits)
        assert highest_w(bent, rows) <= 1.01 * max(700.0, highest_w(straight, rows))
        assert bent.latency_distance + bent.energy_distance <= straight.latency_distance + straight.energy_distance
        assert (bent.latency_s > 0) >= (straight.latency_s > 0)
        assert (bent.energy_j > 0) >= (straight.energy_j > 0)


def test_compute_bound_layer_costs_by_rows_and_hardly_by_experts():
    model = MODELS["table"]
    decode, prefill = model.routing_cost(QWEN3, 16), model.routing_cost(QWEN3, 4096)
    assert prefill.latency_s < 0.4 * decode.latency_s
    assert decode.load_latency_s(1024.0) < prefill.load_latency_s(1024.0)


def test_touching_an_expert_costs_what_the_table_says():
    """127 to 453 us and 75.2 to 288 mJ from 32 to 128 experts at 128 rows."""
    view = MODELS["table"].routing_cost(QWEN3, 16)
    assert view.latency_s == pytest.approx((453e-6 - 127e-6) / 96, rel=0.06)
    assert view.energy_j == pytest.approx((288e-3 - 75.2e-3) / 96, rel=0.06)


def test_cost_per_expert_is_zero_without_load_and_keeps_the_shape():
    load_LE = np.zeros((3, 128))
    load_LE[:, :8] = 2.0
    costs = MODELS["synthetic"].cost_per_expert(QWEN3, load_LE)
    assert costs.latency_s.shape == costs.energy_j.shape == (3, 128)
    assert (costs.energy_j[:, 8:] == 0).all()
    assert (costs.energy_j[:, :8] > 0).all()


@pytest.mark.parametrize("wrong", [np.zeros(5), np.full(128, np.nan), np.full(128, -1.0), np.zeros((0, 128))])
def test_wrong_loads_are_refused(wrong):
    with pytest.raises(CostError):
        MODELS["synthetic"].cost_per_expert(QWEN3, wrong)


def test_no_load_at_all_costs_nothing():
    costs = MODELS["synthetic"].cost_per_expert(QWEN3, np.zeros(128))
    assert costs.energy_j.sum() == 0.0


def test_a_lower_power_limit_makes_experts_dearer_in_time():
    capped = SysState(time_s=0, wall_time_s=0, source="t", kind=Kind.SIMULATED, power_limit_w=300.0)
    model = MODELS["table"]
    assert model.routing_cost(QWEN3, 16, capped).latency_s > 1.5 * model.routing_cost(QWEN3, 16).latency_s


def test_hinges_are_zero_below_their_offset():
    hinges = Hinges(np.array([2.0, 5.0]), np.array([3.0, 20.0]))
    assert hinges([0.0, 1.0, 2.0, 4.0, 10.0]).tolist() == [0.0, 0.0, 1.0, 5.0, 30.0]
