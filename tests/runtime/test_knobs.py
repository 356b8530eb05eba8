import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from thermoe.errors import ConfigError
from thermoe.kernels.route import Routing, route
from thermoe.runtime import counters as counters_module
from thermoe.runtime.knobs import DeviceCounters, DeviceKnobs
from thermoe.types import RoutingKnobs

LAYERS, EXPERTS, TOP_K = 3, 7, 2
SCALARS = ("price", "top_k", "protected_k0", "max_experts", "gate_mass", "skip_ratio")
TABLES = ("cost", "bias", "allowed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def random_knobs(seed: int, **changes) -> RoutingKnobs:
    rng = np.random.default_rng(seed)
    values = {
        "price": rng.random(LAYERS),
        "cost": rng.random((LAYERS, EXPERTS)),
        "bias": rng.normal(size=(LAYERS, EXPERTS)),
        "allowed": np.arange(EXPERTS) != rng.integers(EXPERTS, size=(LAYERS, 1)),
        "top_k": rng.integers(1, TOP_K + 1, LAYERS),
        "protected_k0": rng.integers(0, TOP_K + 1, LAYERS),
        "max_experts": rng.integers(0, EXPERTS, LAYERS),
        "gate_mass": rng.random(LAYERS),
        "skip_ratio": rng.random(LAYERS),
        "value_power": 1.5,
        "union": True,
    }
    return RoutingKnobs(**(values | changes))


def assert_holds(device_knobs: DeviceKnobs, knobs: RoutingKnobs) -> None:
    for layer in range(LAYERS):
        view = device_knobs.layer(layer)
        for name in SCALARS:
            assert getattr(view, name).item() == np.float32(getattr(knobs, name)[layer]), name
        for name in TABLES:
            np.testing.assert_array_equal(getattr(view, name).cpu(), np.float32(getattr(knobs, name)[layer]))
        assert view.value_power.item() == np.float32(knobs.value_power)


def test_every_knob_arrives_in_its_place() -> None:
    knobs = random_knobs(0)
    assert_holds(DeviceKnobs(knobs, "cpu"), knobs)


def test_a_layers_row_holds_all_its_knobs_and_begins_at_sixteen_bytes() -> None:
    device_knobs = DeviceKnobs(random_knobs(0), "cpu")
    for layer in range(LAYERS):
        view = device_knobs.layer(layer)
        apart = torch.cat(
            [view.cost, view.bias, view.allowed, *(getattr(view, name).view(1) for name in (*SCALARS, "value_power"))]
        )
        assert torch.equal(view.row, apart)
        assert view.row.data_ptr() % 16 == 0


def test_views_show_later_writes() -> None:
    device_knobs = DeviceKnobs(random_knobs(0), "cpu")
    view = device_knobs.layer(1)
    later = random_knobs(1)
    device_knobs.write(later)
    assert view.price.item() == np.float32(later.price[1])
    np.testing.assert_array_equal(view.bias, np.float32(later.bias[1]))
    assert_holds(device_knobs, later)


def test_union_is_withheld_on_request_and_off_when_not_wanted() -> None:
    device_knobs = DeviceKnobs(random_knobs(0), "cpu")
    assert device_knobs.layer(0).union
    assert not device_knobs.layer(0, union=False).union
    device_knobs.write(random_knobs(0, union=False))
    assert not device_knobs.layer(0).union
    # A captured graph runs the union's operations all the same: then all own choices are protected.
    assert device_knobs.layer(0).protected_k0.item() >= TOP_K


def test_what_the_host_knows_follows_each_write() -> None:
    neutral = replace(RoutingKnobs.neutral(LAYERS, EXPERTS, TOP_K), union=True)
    device_knobs = DeviceKnobs(neutral, "cpu")
    view = device_knobs.layer(2)
    assert (view.biased, view.priced, view.ranked, view.slots_kept) == (False, True, False, TOP_K)
    one = np.eye(LAYERS)[2]
    allowed = np.ones((LAYERS, EXPERTS), dtype=bool)
    allowed[2, 3] = False
    for changes, expected in (
        ({"price": np.full(LAYERS, np.inf)}, (False, False, False, TOP_K)),
        ({"max_experts": one.astype(int)}, (False, True, True, TOP_K)),
        ({"bias": np.outer(one, np.eye(EXPERTS)[0])}, (True, True, False, TOP_K)),
        ({"allowed": allowed}, (True, True, False, TOP_K)),
        ({"gate_mass": 1 - 0.1 * one}, (False, True, False, 0)),
        ({"skip_ratio": 0.1 * one}, (False, True, False, 0)),
        ({"top_k": np.array([2, 2, 1])}, (False, True, False, 1)),
    ):
        device_knobs.write(replace(neutral, **changes))
        view = device_knobs.layer(2)
        assert (view.biased, view.priced, view.ranked, view.slots_kept) == expected, changes


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (RoutingKnobs.neutral(LAYERS, EXPERTS + 1, TOP_K), r"\(3, 8\).*\(3, 7\)"),
        (random_knobs(0, allowed=np.arange(LAYERS)[:, None] != np.ones((1, EXPERTS))), "no expert in layer 1"),
        (random_knobs(0, bias=np.full((LAYERS, EXPERTS), np.inf)), "finite"),
    ],
)
def test_bad_knobs_are_refused_in_one_line_and_leave_the_old_ones(knobs: RoutingKnobs, message: str) -> None:
    before = random_knobs(5)
    device_knobs = DeviceKnobs(before, "cpu")
    with pytest.raises(ConfigError, match=message) as caught:
        device_knobs.write(knobs)
    assert "\n" not in str(caught.value)
    assert_holds(device_knobs, before)


def random_routing(rng: np.random.Generator, num_tokens: int) -> tuple[Routing, torch.Tensor, torch.Tensor]:
    """A routing that keeps random experts, the gates, and the model's own choice."""
    gates = rng.dirichlet(np.ones(EXPERTS), num_tokens)
    ids = np.argsort(rng.random((num_tokens, EXPERTS)), axis=1)[:, :TOP_K]
    kept = rng.random((num_tokens, TOP_K)) < 0.6
    kept[:, 0] = True
    ids = np.where(kept, ids, ids[:, :1])
    own = np.argsort(-gates, axis=1)[:, :TOP_K]
    as_tensor = torch.from_numpy
    routing = Routing(
        ids_TK=as_tensor(ids),
        weights_TK=as_tensor(gates).gather(1, as_tensor(ids)),
        kept_TK=as_tensor(kept),
        own_ids_TK=as_tensor(own),
        loaded_CE=None,
    )
    return routing, as_tensor(gates).float(), as_tensor(own)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 1), (5, 3), (129, 7)])
@pytest.mark.parametrize("masked", [False, True])
def test_counters_agree_with_a_recount(rows: int, columns: int, masked: bool) -> None:
    rng = np.random.default_rng(rows)
    counters = DeviceCounters(LAYERS, EXPERTS, "cpu")
    tokens, loads = np.zeros((LAYERS, EXPERTS)), np.zeros((LAYERS, EXPERTS))
    mass, changed, groups, live_tokens = np.zeros(LAYERS), np.zeros(LAYERS), 0, 0
    for _ in range(3):
        live = rng.random(rows * columns) < 0.5 if masked else np.ones(rows * columns, dtype=bool)
        live_T = torch.from_numpy(live) if masked else None
        groups += sum(live[c::columns].any() for c in range(columns))
        live_tokens += live.sum()
        last = []
        for layer in range(LAYERS):
            routing, gates_TE, own = random_routing(rng, rows * columns)
            counters.add(layer, routing, gates_TE, live_T, columns, own)
            per_column = [{"experts": set(), "rows": 0, "mass": 0.0} for _ in range(columns)]
            for t in np.flatnonzero(live):
                used = [int(e) for e, k in zip(routing.ids_TK[t], routing.kept_TK[t], strict=True) if k]
                own_t = own[t].tolist()
                kept_mass = float(gates_TE[t, used].sum() / gates_TE[t, own_t].sum())
                mass[layer] += kept_mass
                changed[layer] += (TOP_K - len(set(used) & set(own_t))) / TOP_K
                column = per_column[t % columns]
                column["experts"] |= set(used)
                column["rows"] += len(used)
                column["mass"] += kept_mass
                for e in used:
                    tokens[layer, e] += 1
            for column in per_column:
                for e in column["experts"]:
                    loads[layer, e] += 1
            last.append(per_column)
        distinct, routed, mean_mass = counters.last_forward()
        np.testing.assert_array_equal(distinct, [[len(c["experts"]) for c in layer] for layer in last])
        np.testing.assert_array_equal(routed, [[c["rows"] for c in layer] for layer in last])
        live_C = np.array([max(live[c::columns].sum(), 1) for c in range(columns)])
        np.testing.assert_allclose(mean_mass, [[c["mass"] for c in layer] / live_C for layer in last], rtol=1e-5)
    statistics = counters.drain()
    assert (statistics.num_groups, statistics.num_tokens) == (groups, live_tokens)
    np.testing.assert_array_equal(statistics.tokens_per_expert, tokens)
    np.testing.assert_array_equal(statistics.loads_per_expert, loads)
    np.testing.assert_allclose(statistics.gate_mass_kept, mass / max(live_tokens, 1), rtol=1e-5)
    np.testing.assert_allclose(statistics.changed_slots, changed / max(live_tokens, 1), rtol=1e-5, atol=1e-9)


def test_draining_starts_again_from_zero() -> None:
    counters = DeviceCounters(LAYERS, EXPERTS, "cpu")
    ids_TK = torch.tensor([[0, 3], [3, 6]])
    for layer in range(LAYERS):
        counters.watch(layer, ids_TK, None, 1)
    first = counters.drain()
    assert first.tokens_per_expert.tolist() == [[1, 0, 0, 2, 0, 0, 1]] * LAYERS
    assert first.loads_per_expert.tolist() == [[1, 0, 0, 1, 0, 0, 1]] * LAYERS
    empty = counters.drain()
    assert (empty.num_groups, empty.num_tokens) == (0, 0)
    assert not empty.tokens_per_expert.any()
    assert not empty.gate_mass_kept.any()
    assert first.tokens_per_expert.any()  # what was handed out stays


def test_watching_counts_like_a_choice_that_changes_nothing() -> None:
    ranks_TE = torch.randn(12, EXPERTS, generator=torch.Generator().manual_seed(0))
    knobs = DeviceKnobs(RoutingKnobs.neutral(1, EXPERTS, TOP_K), "cpu")
    routing = route(ranks_TE, ranks_TE.softmax(-1), knobs.layer(0), top_k=TOP_K)
    live_T = torch.arange(12) % 4 > 0
    added, watched = DeviceCounters(1, EXPERTS, "cpu"), DeviceCounters(1, EXPERTS, "cpu")
    added.add(0, routing, ranks_TE.softmax(-1), live_T, 4, routing.own_ids_TK)
    watched.watch(0, routing.own_ids_TK, live_T, 4)
    for left, right in zip(added.last_forward(), watched.last_forward(), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)
    left, right = added.drain(), watched.drain()
    assert left.num_groups == right.num_groups == 3
    np.testing.assert_array_equal(left.tokens_per_expert, right.tokens_per_expert)
    np.testing.assert_allclose(left.gate_mass_kept, right.gate_mass_kept, rtol=1e-6)
    assert left.changed_slots.tolist() == right.changed_slots.tolist() == [0.0]


def test_one_tokens_nan_leaves_the_sums_of_the_others() -> None:
    rng = np.random.default_rng(3)
    routing, gates_TE, own = random_routing(rng, 4)
    gates_TE[2] = torch.nan
    counters = DeviceCounters(1, EXPERTS, "cpu")
    counters.add(0, routing, gates_TE, torch.tensor([1, 1, 0, 1]), 1, own)
    assert np.isfinite(counters.drain().gate_mass_kept).all()


def test_counting_goes_on_outside_inference_mode() -> None:
    with torch.inference_mode():
        counters = DeviceCounters(1, EXPERTS, "cpu")
        knobs = DeviceKnobs(RoutingKnobs.neutral(1, EXPERTS, TOP_K), "cpu")
        counters.watch(0, torch.tensor([[0, 1]]), None, 1)
    counters.watch(0, torch.tensor([[0, 1]]), None, 1)
    knobs.write(RoutingKnobs.neutral(1, EXPERTS, TOP_K))
    assert counters.drain().num_tokens == 2


def test_no_count_is_lost_to_a_draining_thread() -> None:
    counters = DeviceCounters(1, EXPERTS, "cpu")
    drained, stop = [], threading.Event()

    def drain() -> None:
        while not stop.is_set():
            drained.append(counters.drain().num_tokens)

    thread = threading.Thread(target=drain)
    thread.start()
    for _ in range(500):
        counters.watch(0, torch.tensor([[0, 1]]), None, 1)
    stop.set()
    thread.join()
    assert sum(drained) + counters.drain().num_tokens == 500


def test_a_device_without_float64_counts_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros

    def zeros_without_float64(*args, dtype=None, **kwargs) -> torch.Tensor:
        if dtype is torch.float64:
            raise TypeError("this device does not support float64")
        return zeros(*args, dtype=dtype, **kwargs)

    monkeypatch.setattr(counters_module.torch, "zeros", zeros_without_float64)
    counters = DeviceCounters(1, EXPERTS, "cpu")
    counters.watch(0, torch.tensor([[0, 1]]), None, 1)
    assert counters.drain().tokens_per_expert.tolist() == [[1, 1, 0, 0, 0, 0, 0]]


@pytest.mark.gpu
@needs_gpu
def test_pinned_writes_and_a_replayed_graph_on_a_gpu() -> None:
    first, later = random_knobs(0), random_knobs(1)
    device_knobs = DeviceKnobs(replace(first, max_experts=np.zeros(LAYERS, dtype=np.int64)), "cuda")
    assert_holds(device_knobs, replace(first, max_experts=np.zeros(LAYERS, dtype=np.int64)))
    ranks_TE = torch.randn(16, EXPERTS, device="cuda")
    gates_TE = ranks_TE.softmax(-1)
    route(ranks_TE, gates_TE, device_knobs.layer(0), top_k=TOP_K)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = route(ranks_TE, gates_TE, device_knobs.layer(0), top_k=TOP_K)
    device_knobs.write(later)  # more experts by value: an operation the first knobs had no need of
    graph.replay()
    eager = route(ranks_TE, gates_TE, device_knobs.layer(0), top_k=TOP_K)
    assert torch.equal(captured.ids_TK, eager.ids_TK)
    assert_holds(device_knobs, later)


@pytest.mark.gpu
@needs_gpu
def test_counting_does_not_wait_for_a_gpu() -> None:
    counters = DeviceCounters(1, EXPERTS, "cuda")
    ids_TK, live_T = torch.tensor([[0, 1], [2, 1]], device="cuda"), torch.ones(2, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        counters.watch(0, ids_TK, live_T, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counters.drain().num_tokens == 2
