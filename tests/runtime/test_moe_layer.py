"""`SimpleMoELayer`, block and stack against loops in float64 that know nothing of `route`."""

import math

import numpy as np
import pytest
import torch

from thermoe.errors import ConfigError
from thermoe.experts import ExpertKind, compressed
from thermoe.runtime import moe_layer
from thermoe.runtime.block import MoEStack, MoETransformerBlock
from thermoe.runtime.moe_layer import SharedRouting, SimpleMoELayer
from thermoe.types import Kind, MoEShape, RoutingKnobs, SysState

AWKWARD = MoEShape(num_layers=1, hidden_size=7, inter_size=5, num_experts=9, top_k=3)


def knobs(shape: MoEShape, **changes) -> RoutingKnobs:
    neutral = RoutingKnobs.neutral(shape.num_layers, shape.num_experts, shape.top_k)
    values = {name: getattr(neutral, name) for name in neutral.__dataclass_fields__}
    return RoutingKnobs(**values | changes)


def state(time_s: float) -> SysState:
    return SysState(time_s=time_s, wall_time_s=time_s, source="test", kind=Kind.SIMULATED, power_w=300.0)


def expert_by_hand(expert, x: torch.Tensor) -> torch.Tensor:
    fc1, fc2 = (expert.fc1, expert.fc2) if hasattr(expert, "fc1") else expert._dequantize_and_unpack()
    hidden = fc1.double() @ x
    if expert.kind is ExpertKind.RELU:
        hidden = hidden.clamp(min=0)
    else:
        gate, up = hidden[: len(hidden) // 2], hidden[len(hidden) // 2 :]
        hidden = gate / (1 + (-gate).exp()) * up
    return fc2.double() @ hidden


@torch.no_grad()
def layer_by_hand(layer: SimpleMoELayer, x_TD: torch.Tensor, allowed: list[set[int]] | None = None) -> torch.Tensor:
    """Token by token in float64; `allowed[t]` are the experts token t may use (all if None)."""
    outputs = []
    for t, x in enumerate(x_TD.double()):
        logits = layer.router.weight.double() @ x
        probs = (logits - logits.max()).exp()
        candidates = range(len(probs)) if allowed is None else allowed[t]
        chosen = sorted(candidates, key=lambda e: -logits[e].item())[: layer.shape.top_k]
        total = sum(probs[e] for e in chosen) if layer.renormalise else probs.sum()
        outputs.append(sum(probs[e] / total * expert_by_hand(layer.experts[e], x) for e in chosen))
    return torch.stack(outputs).float()


def own_choices(layer: SimpleMoELayer, x_TD: torch.Tensor, top: int) -> list[set[int]]:
    return [set(row.tolist()) for row in (x_TD @ layer.router.weight.T).topk(top).indices]


@pytest.mark.parametrize("kind", list(ExpertKind))
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 13])
def test_forward_matches_a_float64_loop(kind, renormalise, num_tokens):
    layer = SimpleMoELayer(AWKWARD, expert_kind=kind, renormalise=renormalise, seed=2)
    x = torch.randn(num_tokens, 7, generator=torch.Generator().manual_seed(1))
    want = layer_by_hand(layer, x)
    torch.testing.assert_close(layer(x), want, atol=1e-5, rtol=1e-4)
    assert want.abs().mean() > 0.01  # zeros must not pass


@pytest.mark.parametrize("kind", list(ExpertKind))
@pytest.mark.parametrize(
    "formats", ["int4", ["dense", "int8", "int4", "int3", "int2", "fp8", "fp8_block", "dense", "int4"]]
)
def test_experts_of_any_format_compute_with_the_weights_they_hold(kind, formats):
    layer, plain = (SimpleMoELayer(AWKWARD, expert_kind=kind, formats=f, seed=2) for f in (formats, "dense"))
    x = torch.randn(13, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), layer_by_hand(layer, x), atol=1e-5, rtol=1e-4)
    assert layer.formats == tuple(formats if isinstance(formats, list) else [formats] * 9)
    assert torch.equal(layer.router.weight, plain.router.weight)
    for expert, drawn, held_as in zip(layer.experts, plain.experts, layer.formats, strict=True):
        same = compressed(drawn, held_as)
        assert all(
            torch.equal(a, b) for a, b in zip(expert.state_dict().values(), same.state_dict().values(), strict=True)
        )
    before = [e.state_dict() for e in layer.experts]
    layer.reset_parameters(3)
    layer.reset_parameters(2)
    for expert, held in zip(layer.experts, before, strict=True):
        assert all(torch.equal(value, held[name]) for name, value in expert.state_dict().items())


def test_formats_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="3 formats for 9 experts: give one for each"):
        SimpleMoELayer(AWKWARD, formats=["dense"] * 3)
    with pytest.raises(ConfigError, match="expert format int5: choose from dense"):
        SimpleMoELayer(AWKWARD, formats="int5")


def test_union_of_first_choices_is_taken_over_each_position_of_a_block():
    num_rows, num_positions, k0 = 3, 4, 1
    layer = SimpleMoELayer(AWKWARD, seed=5)
    infinite = np.full(1, np.inf)
    layer.shared.knobs.write(knobs(AWKWARD, union=True, price=infinite, protected_k0=np.full(1, k0, dtype=np.int64)))
    x = torch.randn(num_rows, num_positions, 7, generator=torch.Generator().manual_seed(4))

    got = layer(x)

    first = own_choices(layer, x.reshape(-1, 7), k0)
    unions = [set().union(*(first[r * num_positions + c] for r in range(num_rows))) for c in range(num_positions)]
    allowed = [unions[t % num_positions] for t in range(num_rows * num_positions)]
    want = layer_by_hand(layer, x.reshape(-1, 7), allowed).view_as(x)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    free = layer_by_hand(layer, x.reshape(-1, 7)).view_as(x)
    assert (got - free).abs().max() > 0.01  # the union did bind
    assert (layer.metrics.last.distinct_experts <= torch.tensor([float(len(u)) for u in unions])).all()
    assert (layer.metrics.last.gate_mass_kept < 1).any()


def test_fewer_experts_per_token_compute_fewer_rows():
    layer = SimpleMoELayer(AWKWARD, seed=5)
    layer.shared.knobs.write(knobs(AWKWARD, top_k=np.full(1, 1, dtype=np.int64)))
    rows = []
    for expert in layer.experts:
        expert.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    x = torch.randn(11, 7, generator=torch.Generator().manual_seed(3))

    got = layer(x)

    torch.testing.assert_close(got, layer_by_hand(layer, x, own_choices(layer, x, 1)), atol=1e-5, rtol=1e-4)
    assert sum(rows) == 11
    assert layer.metrics.last.tokens_per_expert.sum() == 11


def test_dead_tokens_neither_load_experts_nor_count():
    layer = SimpleMoELayer(AWKWARD, seed=6)
    layer.shared.knobs.write(
        knobs(AWKWARD, union=True, price=np.full(1, np.inf), protected_k0=np.full(1, 3, dtype=np.int64))
    )
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(8))
    live = torch.tensor([True, False, True, False, False, False])

    got = layer(x, live=live)

    union = set().union(*(choice for choice, on in zip(own_choices(layer, x, 3), live.tolist(), strict=True) if on))
    assert len(union) < 9
    torch.testing.assert_close(got, layer_by_hand(layer, x, [union] * 6), atol=1e-5, rtol=1e-4)
    assert layer.metrics.last.distinct_experts.tolist() == [len(union)]
    assert layer.metrics.last.tokens_per_expert.sum() == 2 * 3
    assert layer.shared.counters.drain().num_tokens == 2


def test_metrics_are_bounded_and_counted():
    layer = SimpleMoELayer(AWKWARD, metrics_capacity=3)
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    for i in range(5):
        layer(x + i, state(i))

    assert len(layer.metrics) == 3
    assert [m.index for m in layer.metrics] == [2, 3, 4]
    assert [m.sys_state.time_s for m in layer.metrics] == [2.0, 3.0, 4.0]
    counts = torch.bincount((x + 4).matmul(layer.router.weight.T).topk(3).indices.flatten(), minlength=9)
    assert torch.equal(layer.metrics.last.tokens_per_expert, counts.float())
    assert layer.metrics.last.distinct_experts.item() == (counts > 0).sum()
    assert not layer.metrics.last.gate_mass_kept.requires_grad
    layer.metrics.clear()
    assert (len(layer.metrics), layer.metrics.num_forwards) == (0, 0)


def test_gradients_reach_router_and_chosen_experts():
    layer = SimpleMoELayer(AWKWARD, seed=1)
    layer(torch.randn(1, 7, generator=torch.Generator().manual_seed(2))).square().sum().backward()
    assert layer.router.weight.grad.abs().max() > 0
    moved = [e for e, expert in enumerate(layer.experts) if expert.fc2.grad is not None and expert.fc2.grad.any()]
    assert len(moved) == 3


def test_policy_is_asked_once_per_state_for_all_layers():
    shape = MoEShape(num_layers=2, hidden_size=8, inter_size=4, num_experts=6, top_k=2)
    asked = []

    def only_best(sys_state):
        asked.append(sys_state.time_s)
        return knobs(shape, top_k=np.ones(2, dtype=np.int64)) if sys_state.time_s > 1 else None

    stack = MoEStack(shape, num_heads=2, policy=only_best)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    rows = []
    for time_s in (None, 1.0, 2.0):
        stack(x, None if time_s is None else state(time_s))
        rows.append([block.moe.metrics.last.tokens_per_expert.sum().item() for block in stack.blocks])
    assert asked == [1.0, 2.0]
    assert rows == [[10, 10], [10, 10], [5, 5]]


def block_by_hand(block: MoETransformerBlock, x: torch.Tensor) -> torch.Tensor:
    """(S, D) float64: attention written out over heads and positions, then the MoE layer's own float64 loop."""

    def norm(rows):
        eps = torch.finfo(torch.float32).eps
        return rows / (rows.square().mean(-1, keepdim=True) + eps).sqrt()

    num_positions, width = x.shape
    size = width // block.num_heads
    qkv = norm(x) @ block.qkv.weight.double().T
    mixed = torch.zeros_like(x)
    for h in range(block.num_heads):
        q, k, v = (qkv[:, i * width + h * size : i * width + (h + 1) * size] for i in range(3))
        for s in range(num_positions):
            weights = (k[: s + 1] @ q[s] / math.sqrt(size)).softmax(0)
            mixed[s, h * size : (h + 1) * size] = weights @ v[: s + 1]
    x = x + mixed @ block.out.weight.double().T
    return x + layer_by_hand(block.moe, norm(x)).double()


@torch.no_grad()
def test_block_matches_a_float64_loop():
    shape = MoEShape(num_layers=1, hidden_size=12, inter_size=5, num_experts=7, top_k=2)
    block = MoETransformerBlock(shape, num_heads=3, seed=4)
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(9))
    want = torch.stack([block_by_hand(block, row) for row in x.double()]).float()
    torch.testing.assert_close(block(x), want, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_block_looks_back_only():
    block = MoETransformerBlock(MoEShape(num_layers=1, hidden_size=8, inter_size=4, num_experts=4, top_k=2))
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 4:] += 1.0
    before, after = block(x), block(changed)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:])


def test_seed_means_one_set_of_weights_and_layers_differ():
    shape = MoEShape(num_layers=2, hidden_size=8, inter_size=4, num_experts=4, top_k=2)
    first, second = MoEStack(shape, seed=3), MoEStack(shape, seed=3)
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    weights = [block.moe.router.weight for block in first.blocks] + [
        MoEStack(shape, seed=4).blocks[0].moe.router.weight
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not any(torch.equal(w, other) for w in weights[:2] for other in weights[2:])


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="top_k = 5 of 4 experts"):
        SimpleMoELayer(MoEShape(num_layers=1, hidden_size=4, inter_size=4, num_experts=4, top_k=5))
    with pytest.raises(ConfigError, match="layer index 1"):
        SimpleMoELayer(AWKWARD, layer_index=1)
    other = SharedRouting(MoEShape(num_layers=1, hidden_size=7, inter_size=5, num_experts=8, top_k=3))
    with pytest.raises(ConfigError, match="build both from one shape"):
        SimpleMoELayer(AWKWARD, shared=other)
    with pytest.raises(ConfigError, match="3 heads on d_model 8"):
        MoETransformerBlock(MoEShape(num_layers=1, hidden_size=8, inter_size=4, num_experts=4, top_k=2), num_heads=3)


def test_fused_routing_gives_the_same_output_and_metrics(monkeypatch):
    shape = MoEShape(num_layers=1, hidden_size=7, inter_size=5, num_experts=9, top_k=3)
    x = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(3))
    live = torch.tensor([[True] * 3] * 3 + [[False] * 3])
    layer = SimpleMoELayer(shape, seed=1)
    layer.shared.knobs.write(knobs(shape, union=True, price=np.array([0.5]), protected_k0=np.array([1])))
    with torch.no_grad():
        plain = layer(x, live=live)
        statistics, asked = layer.shared.counters.drain(), []
        monkeypatch.setattr(moe_layer, "is_fused", lambda *sizes: asked.append(sizes) or True)
        assert torch.equal(layer(x, live=live), plain)
    assert asked
    fused_statistics = layer.shared.counters.drain()
    assert fused_statistics.num_tokens == statistics.num_tokens == 9
    np.testing.assert_array_equal(fused_statistics.tokens_per_expert, statistics.tokens_per_expert)
    np.testing.assert_allclose(fused_statistics.changed_slots, statistics.changed_slots, rtol=1e-6)
    first, second = layer.metrics
    assert torch.equal(first.distinct_experts, second.distinct_experts)
    torch.testing.assert_close(first.gate_mass_kept, second.gate_mass_kept)
    assert torch.equal(first.tokens_per_expert, second.tokens_per_expert)
