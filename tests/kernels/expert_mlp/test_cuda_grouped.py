"""The grouped kernel on a GPU against the float64 reference, with poisoned memory and captured graphs; and what it
refuses, for which no GPU is needed."""

from dataclasses import replace

import pytest
import torch
from mlp_cases import Case, drawn, relative_error, wanted
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.cuda_build import has_compiler
from thermoe.kernels.expert_mlp import Activation, ExpertWeights, cuda_grouped
from thermoe.kernels.expert_mlp.cuda_grouped.build import Build, cubin
from thermoe.kernels.expert_mlp.cuda_grouped.problem import layer_refusal
from thermoe.kernels.expert_mlp.op import _run_grouped, flatten, unflatten

BF16 = torch.bfloat16
TOLERANCE = 5e-3  # one rounding of h and one of the output
TOLERANCE_EIGHT = 6e-2  # 3 bits of mantissa, twice

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="needs compute capability 9.0",
    ),
]


def gpu(test):
    for mark in on_gpu:
        test = mark(test)
    return test


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Makes torch.empty give NaN, so that whatever is read before it was written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def case(**changes) -> Case:
    return Case(
        **{"dtype": BF16, "tokens": 129, "top_k": 4, "experts": 24, "d_model": 512, "inter_size": 256} | changes
    )


def moved(experts: ExpertWeights) -> ExpertWeights:
    fc1, fc2, extras, layout = flatten(experts, None)
    return unflatten(*([tensor.cuda() for tensor in part] for part in (fc1, fc2, extras)), layout)[0]


def inputs_of(shape: Case, seed: int = 0) -> tuple[tuple[Tensor, Tensor, Tensor, ExpertWeights], Tensor]:
    x_TD, ids_TK, weights_TK, experts = drawn(shape, seed)
    want = wanted(x_TD, ids_TK, weights_TK, experts)
    return (x_TD.cuda(), ids_TK.cuda(), weights_TK.cuda(), moved(experts)), want


def run(inputs: tuple[Tensor, Tensor, Tensor, ExpertWeights], **tuning) -> Tensor:
    x_TD, ids_TK, _, experts = inputs
    assert cuda_grouped.refusal(experts, *ids_TK.shape, x_TD.dtype) is None
    out_TD = torch.full_like(x_TD, float("nan"))
    cuda_grouped.run(*inputs, out_TD, tuning=cuda_grouped.Tuning(**tuning) if tuning else None)
    return out_TD


AWKWARD = {
    "129 tokens": case(),
    "1000 tokens": case(tokens=1000),
    "7 tokens": case(tokens=7),
    "all tokens to one expert": case(tokens=700, routing="one"),
    "dropped slots": case(tokens=1000, routing="dropped", biases=True),
    "wide": case(
        tokens=63, experts=6, d_model=2880, inter_size=2880, biases=True, activation=Activation.SWIGLU_CLAMPED
    ),
    "geglu": case(activation=Activation.GEGLU, biases=True),
    "widths that fill no tile": case(d_model=288, inter_size=200, biases=True),
    "narrow ones": case(d_model=32, inter_size=16),
    "hundreds of experts": case(experts=500, tokens=1000, d_model=64, inter_size=32),
}


@gpu
@pytest.mark.parametrize("shape", AWKWARD.values(), ids=AWKWARD.keys())
def test_awkward_shapes_match_the_reference(shape):
    inputs, want = inputs_of(shape)

    got = run(inputs)

    assert relative_error(got, want) < TOLERANCE
    assert relative_error(torch.zeros_like(got), want) > 0.5


@gpu
@pytest.mark.parametrize("shape", ["129 tokens", "dropped slots", "widths that fill no tile"])
def test_e4m3_tokens_meet_e4m3_weights(shape):
    inputs, want = inputs_of(replace(AWKWARD[shape], format="fp8-channel", inter_size=272))

    assert relative_error(run(inputs), want) < TOLERANCE_EIGHT


CODES_OF_4_BITS = [
    {"tokens": 144, "lead": 1, "pair": False, "ahead": 1},
    {"tokens": 128, "lead": 0, "pair": False, "lag": 5},
    {"tokens": 144, "lead": 1, "pair": False, "keep": 3},
    {"tokens": 144, "lead": 1},  # pairs
]


@gpu
@pytest.mark.parametrize("shape", ["129 tokens", "1000 tokens", "dropped slots", "widths that fill no tile", "wide"])
def test_codes_of_four_bits_are_widened(shape):
    inputs, want = inputs_of(replace(AWKWARD[shape], format="int4", group_size=128))
    got = run(inputs)

    assert relative_error(got, want) < TOLERANCE
    assert all(torch.equal(got, run(inputs, **tuning)) for tuning in CODES_OF_4_BITS)


@gpu
@pytest.mark.parametrize("shape", ["129 tokens", "dropped slots", "widths that fill no tile"])
@pytest.mark.parametrize("name", ["int2", "int8", "bank4", "bank8"])
def test_codes_of_every_precision_are_widened(name, shape):
    inputs, want = inputs_of(replace(AWKWARD[shape], format=name, group_size=128))

    assert relative_error(run(inputs), want) < TOLERANCE


@gpu
def test_a_bank_is_read_at_the_precisions_of_the_moment():
    shape = case(format="bank8", group_size=128)
    inputs, _ = inputs_of(shape)
    experts = inputs[3]
    run(inputs)

    for bits in (2, 4, 8):
        experts.bits_E.fill_(bits)
        want = wanted(*drawn(shape)[:3], replace(drawn(shape)[3], bits_E=torch.full((24,), bits, dtype=torch.int32)))
        assert relative_error(run(inputs), want) < TOLERANCE


@gpu
@pytest.mark.parametrize(
    "tuning",
    [
        {"tokens": 128},
        {"lead": 0},
        {"stages": 3},
        {"lag": 0},
        {"lag": 5},
        {"lag": -1},
        {"ahead": 4},
        {"keep": 3},
        {"pair": False},
        {"pair": False, "lag": 5},
    ],
)
def test_every_tuning_gives_the_same_bits(tuning):
    inputs, want = inputs_of(case(tokens=1000, d_model=1024))
    got = run(inputs, **tuning)

    assert relative_error(got, want) < TOLERANCE
    assert torch.equal(got, run(inputs))


@gpu
def test_fifty_runs_give_the_same_bits():
    inputs, _ = inputs_of(case(tokens=1000))
    first = run(inputs)

    assert all(torch.equal(first, run(inputs)) for _ in range(50))


@gpu
def test_a_graph_replays_with_other_tokens_and_routes():
    shape = case(tokens=300)
    (x_TD, ids_TK, weights_TK, experts), _ = inputs_of(shape)
    out_TD, again_TD = torch.empty_like(x_TD), torch.empty_like(x_TD)
    cuda_grouped.run(x_TD, ids_TK, weights_TK, experts, out_TD)  # Triton compiles the plan and the sum
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cuda_grouped.run(x_TD, ids_TK, weights_TK, experts, out_TD)
        cuda_grouped.run(x_TD, ids_TK, weights_TK, experts, again_TD)

    for seed in (3, 4):
        other_x_TD, other_ids_TK, other_weights_TK, _ = drawn(shape, seed)
        x_TD.copy_(other_x_TD), ids_TK.copy_(other_ids_TK), weights_TK.copy_(other_weights_TK)
        out_TD.fill_(float("nan")), again_TD.fill_(float("nan"))
        graph.replay()
        want = wanted(other_x_TD, other_ids_TK, other_weights_TK, drawn(shape)[3])
        assert relative_error(out_TD, want) < TOLERANCE
        assert torch.equal(out_TD, again_TD)


@gpu
def test_two_streams_at_once_do_not_disturb_each_other():
    inputs, want = inputs_of(case(tokens=300))
    run(inputs)
    torch.cuda.synchronize()
    results = []
    for stream in 5 * [torch.cuda.Stream(), torch.cuda.Stream()]:
        with torch.cuda.stream(stream):
            results.append(run(inputs))
    torch.cuda.synchronize()

    assert relative_error(results[0], want) < TOLERANCE
    assert all(torch.equal(results[0], result) for result in results)


def layer(**changes) -> ExpertWeights:
    return drawn(case(tokens=4) if not changes else case(tokens=4, **changes))[3]


REFUSED = {
    "an activation without gates": (layer(activation=Activation.RELU), "takes gated ones"),
    "a model width of part of a group": (layer(d_model=272), "model width in 32s"),
    "an expert width of part of a piece": (layer(inter_size=100), "expert width in 8s"),
    "e4m3 columns of part of a piece": (layer(format="fp8-channel", inter_size=136), "expert width in 16s"),
    "weights of float32": (layer(dtype=torch.float32), "weights in torch.float32: the kernel takes bf16"),
    "scales of blocks": (layer(format="fp8-block"), "blocks of e4m3"),
    "groups of 32": (layer(format="int4"), "int4 in other groups or with zeros"),
    "codes with zeros": (layer(format="int4-zeros", group_size=128), "int4 in other groups or with zeros: the kernel"),
    "a bank in groups of 32": (layer(format="bank8"), "bank8 in other groups"),
    "matrices of other precisions": (
        replace(layer(format="int4", group_size=128), fc2=layer(format="int8", group_size=128).fc2),
        "weights in int4 and int8",
    ),
    "too many experts": (layer(experts=513, d_model=32, inter_size=16), "up to 512"),
    "biases of bf16": (replace(layer(), bias1_EN=torch.zeros(24, 512, dtype=BF16)), "biases of torch.bfloat16"),
    "one matrix in another format": (replace(layer(), fc2=layer(format="fp8-channel").fc2), "in bf16 and e4m3"),
}


@pytest.mark.parametrize(("experts", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_layer_that_does_not_fit_is_refused_with_the_reason(experts, reason):
    assert reason in layer_refusal(experts, 512)


def test_calls_that_do_not_fit_are_refused_with_the_reason():
    experts = layer()
    assert layer_refusal(experts, 512) is None
    assert "takes 1 to 2**31 pieces" in layer_refusal(experts, 2**25)
    assert "takes bf16" in cuda_grouped.refusal(experts, 128, 4, torch.float16)
    assert "runs on a GPU" in cuda_grouped.refusal(experts, 128, 4, BF16)
    assert not cuda_grouped.supports(experts, 128, 4, BF16)


def test_the_op_leaves_to_triton_what_is_refused_or_would_change_the_result(monkeypatch):
    ran = []
    monkeypatch.setattr(cuda_grouped, "run", lambda *a, **k: ran.append(a))
    x_TD, ids_TK, weights_TK, experts = drawn(case(format="fp8-channel"))
    arguments = (torch.empty_like(x_TD), x_TD, ids_TK, weights_TK, experts, None)

    assert not _run_grouped(*arguments, eight=True)  # on a CPU
    monkeypatch.setattr(cuda_grouped, "supports", lambda *a: True)
    assert not _run_grouped(*arguments, eight=False)
    assert _run_grouped(*arguments, eight=True)
    assert len(ran) == 1


def test_a_call_that_would_be_refused_raises_with_the_reason():
    x_TD, ids_TK, weights_TK, experts = drawn(case(activation=Activation.RELU))

    with pytest.raises(ConfigError, match="cannot take activation relu"):
        cuda_grouped.run(x_TD, ids_TK, weights_TK, experts, torch.empty_like(x_TD))


@pytest.mark.skipif(not has_compiler(), reason="neither NVRTC nor nvcc is here")
@pytest.mark.parametrize(
    "build",
    [
        Build(tokens=16, keep=3),
        Build(tokens=16, eight=True, activation=1, lead=0),
        Build(tokens=16, planes=2, pair=False, keep=3),
    ],
)
def test_the_source_compiles(build, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert cubin(build).startswith(b"\x7fELF")
