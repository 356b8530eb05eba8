"""The decode kernel on a GPU against the float64 reference, with poisoned memory and captured graphs."""

import pytest
import torch
from mlp_cases import FORMATS, Case, drawn, relative_error, wanted
from torch import Tensor

from thermoe.kernels.expert_mlp import Activation, ExpertWeights, PlaneMatrices
from thermoe.kernels.expert_mlp import cuda as decode

BF16 = torch.bfloat16
TOLERANCE = 5e-3  # one rounding of h and one of the output

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9,
        reason="needs compute capability 9.0",
    ),
]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Makes torch.empty give NaN, so that whatever is read before it was written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def case(**changes) -> Case:
    shape = {
        "dtype": BF16,
        "tokens": 16,
        "top_k": 4,
        "experts": 24,
        "d_model": 512,
        "inter_size": 256,
        "group_size": 128,
    }
    return Case(**shape | changes)


def moved(value):
    """The same experts or matrices on the GPU."""
    if isinstance(value, Tensor):
        return value.cuda()
    if isinstance(value, tuple):
        return tuple(moved(item) for item in value)
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is None or isinstance(value, Activation):
        return value
    return type(value)(**{name: moved(getattr(value, name)) for name in fields})


def on_gpu(shape: Case, seed: int = 0) -> tuple[tuple[Tensor, Tensor, Tensor, ExpertWeights], Tensor]:
    x_TD, ids_TK, weights_TK, experts = drawn(shape, seed)
    return (x_TD.cuda(), ids_TK.cuda(), weights_TK.cuda(), moved(experts)), wanted(x_TD, ids_TK, weights_TK, experts)


def run(inputs: tuple[Tensor, Tensor, Tensor, ExpertWeights], **tuning) -> Tensor:
    x_TD, ids_TK, _, experts = inputs
    assert decode.refusal(experts, *ids_TK.shape, x_TD.dtype) is None
    out_TD = torch.full_like(x_TD, float("nan"))
    decode.run(*inputs, out_TD, tuning=decode.Tuning(**tuning))
    return out_TD


@pytest.mark.parametrize("tokens", [1, 7, 16, 33, 63, 64])
@pytest.mark.parametrize("format_name", FORMATS)
def test_matches_the_reference(format_name, tokens):
    inputs, want = on_gpu(case(format=format_name, tokens=tokens))

    got = run(inputs)

    assert relative_error(got, want) < TOLERANCE
    assert relative_error(torch.zeros_like(got), want) > 0.5


AWKWARD = {
    "all tokens to one expert": case(tokens=64, routing="one"),
    "dropped slots": case(tokens=61, routing="dropped", format="int4"),
    "wide": case(tokens=7, experts=6, d_model=2880, inter_size=2880, biases=True, activation=Activation.SWIGLU_CLAMPED),
    "wide e4m3": case(tokens=7, experts=6, d_model=2880, inter_size=2880, format="fp8-block"),
    "wide int4": case(tokens=7, experts=6, d_model=2880, inter_size=2880, format="int4", group_size=32),
    "fewer jobs than warps": case(tokens=64, top_k=2, experts=4, d_model=768, inter_size=896),
    "split columns": case(tokens=16, top_k=2, experts=4, d_model=1024, inter_size=7168, format="int4"),
    "geglu": case(activation=Activation.GEGLU, biases=True),
    "widths that fill no job": case(d_model=288, inter_size=80, biases=True),
    "narrow ones": case(d_model=32, inter_size=16, tokens=3),
    "narrow codes, fewer pieces and groups than a copy": case(
        format="bank8-zeros", d_model=32, inter_size=16, group_size=32, tokens=37
    ),
    "more tokens of an expert than tiles of codes take": case(
        format="bank8", tokens=40, top_k=1, experts=3, d_model=1408, inter_size=1424, group_size=64, routing="one"
    ),
}


@pytest.mark.parametrize("shape", AWKWARD.values(), ids=AWKWARD.keys())
def test_awkward_shapes_match_the_reference(shape):
    inputs, want = on_gpu(shape)

    assert relative_error(run(inputs), want) < TOLERANCE


@pytest.mark.parametrize("tuning", [{"warps": 12}, {"together": False}, {"blocks": 7}])
def test_every_tuning_matches_the_reference(tuning):
    inputs, want = on_gpu(case(format="int4", tokens=33))

    assert relative_error(run(inputs, **tuning), want) < TOLERANCE


def test_narrow_ids_and_weights_match_the_reference():
    (x_TD, ids_TK, weights_TK, experts), _ = on_gpu(case())
    want = wanted(x_TD.cpu(), ids_TK.cpu(), weights_TK.to(BF16).float().cpu(), drawn(case())[3])

    assert relative_error(run((x_TD, ids_TK.int(), weights_TK.to(BF16), experts)), want) < TOLERANCE


@pytest.mark.parametrize("format_name", ["dense", "int4", "fp8-channel"])
def test_fifty_runs_give_the_same_bits(format_name):
    inputs, _ = on_gpu(case(format=format_name, tokens=64))
    first = run(inputs)

    assert all(torch.equal(first, run(inputs)) for _ in range(50))


def test_a_graph_replays_with_other_tokens_routes_and_precisions():
    shape = case(format="bank8", tokens=33)
    (x_TD, ids_TK, weights_TK, experts), _ = on_gpu(shape)
    out_TD = torch.empty_like(x_TD)
    again_TD = torch.empty_like(x_TD)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode.run(x_TD, ids_TK, weights_TK, experts, out_TD)
        decode.run(x_TD, ids_TK, weights_TK, experts, again_TD)

    for seed in (3, 4, 5):
        other_x_TD, other_ids_TK, other_weights_TK, other = drawn(shape, seed)
        x_TD.copy_(other_x_TD), ids_TK.copy_(other_ids_TK), weights_TK.copy_(other_weights_TK)
        experts.bits_E.copy_(other.bits_E)
        out_TD.fill_(float("nan")), again_TD.fill_(float("nan"))
        graph.replay()
        want = wanted(other_x_TD, other_ids_TK, other_weights_TK, moved_back(experts))
        assert relative_error(out_TD, want) < TOLERANCE
        assert torch.equal(out_TD, again_TD)


def moved_back(experts: ExpertWeights) -> ExpertWeights:
    def matrices(value: PlaneMatrices) -> PlaneMatrices:
        return PlaneMatrices(
            planes=tuple(plane.cpu() for plane in value.planes),
            scale_PEGN=value.scale_PEGN.cpu(),
            zero_PEGN=None,
            columns=value.columns,
            group_size=value.group_size,
        )

    return ExpertWeights(fc1=matrices(experts.fc1), fc2=matrices(experts.fc2), bits_E=experts.bits_E.cpu())


def test_two_streams_at_once_do_not_disturb_each_other():
    inputs, want = on_gpu(case(tokens=16, format="int4"))
    run(inputs)
    torch.cuda.synchronize()
    results = []
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(run(inputs))
    torch.cuda.synchronize()

    assert relative_error(results[0], want) < TOLERANCE
    assert all(torch.equal(results[0], result) for result in results)
