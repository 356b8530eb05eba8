"""The public function on the CPU: against products written out by hand, under torch.compile, and with bad input."""

from dataclasses import replace

import pytest
import torch
from mlp_cases import FORMATS, Case, drawn, relative_error, tolerance, wanted

from thermoe.errors import ConfigError
from thermoe.kernels.combine import combine
from thermoe.kernels.expert_mlp import Activation, dequantize, expert_mlp
from thermoe.kernels.expert_mlp.configs import MlpConfig, Shape, choose, config_space, default, shape_of, token_bucket

BY_HAND = {
    Activation.SWIGLU: lambda g, u: g / (1 + (-g).exp()) * u,
    Activation.GEGLU: lambda g, u: 0.5 * g * (1 + torch.tanh(0.7978845608028654 * (g + 0.044715 * g**3))) * u,
    Activation.SWIGLU_CLAMPED: lambda g, u: (
        (u.clamp(-7, 7) + 1) * g.clamp(max=7) / (1 + (-1.702 * g.clamp(max=7)).exp())
    ),
}


@pytest.mark.parametrize("activation", list(BY_HAND))
@pytest.mark.parametrize("format_", FORMATS)
def test_equals_token_by_token_products(format_, activation):
    case = Case(format=format_, activation=activation, biases=True, routing="dropped")
    x_TD, ids_TK, weights_TK, experts = drawn(case)
    fc1 = dequantize(experts.fc1, experts.bits_E, dtype=torch.float64)
    fc2 = dequantize(experts.fc2, experts.bits_E, dtype=torch.float64)
    want_TD = torch.zeros(case.tokens, case.d_model, dtype=torch.float64)
    for t, k in torch.cartesian_prod(torch.arange(case.tokens), torch.arange(case.top_k)).tolist():
        e = int(ids_TK[t, k])
        if 0 <= e < case.experts and weights_TK[t, k] != 0:
            hidden = fc1[e] @ x_TD[t].double() + experts.bias1_EN[e]
            hidden = BY_HAND[activation](*hidden.split(case.inter_size))
            want_TD[t] += weights_TK[t, k] * (fc2[e] @ hidden + experts.bias2_ED[e])

    out_TD = torch.full_like(x_TD, float("nan"))
    got_TD = expert_mlp(x_TD, ids_TK, weights_TK, experts, out_TD=out_TD)

    assert got_TD is out_TD
    assert relative_error(got_TD, want_TD) < tolerance(case)
    assert relative_error(wanted(x_TD, ids_TK, weights_TK, experts), want_TD) < 1e-12
    assert want_TD.square().mean() > 1e-3


def test_no_tokens_and_no_kept_slot():
    x_TD, ids_TK, weights_TK, experts = drawn(Case())
    assert expert_mlp(x_TD[:0], ids_TK[:0], weights_TK[:0], experts).shape == (0, 96)
    assert not expert_mlp(x_TD, ids_TK, torch.zeros_like(weights_TK), experts).any()


@pytest.mark.parametrize("format_", ["dense", "bank8", "fp8-block"])
def test_compiles_as_one_node(format_):
    x_TD, ids_TK, weights_TK, experts = drawn(Case(format=format_, biases=True))

    compiled = torch.compile(
        lambda x: expert_mlp(2 * x, ids_TK, weights_TK, experts) + 1, fullgraph=True, backend="eager"
    )

    torch.testing.assert_close(compiled(x_TD), expert_mlp(2 * x_TD, ids_TK, weights_TK, experts) + 1)


def _spoilt():
    x_TD, ids_TK, weights_TK, experts = drawn(Case())
    yield "needs?", (x_TD[:, :90], ids_TK, weights_TK, experts), {}
    yield "bfloat16, float16 or float32", (x_TD.double(), ids_TK, weights_TK, experts), {}
    yield "same dtype", (x_TD.half(), ids_TK, weights_TK, experts), {}
    yield "experts per token", (x_TD, ids_TK[:3], weights_TK[:3], experts), {}
    yield "experts per token", (x_TD, ids_TK, weights_TK[:, :1], experts), {}
    yield "give integers", (x_TD, weights_TK, weights_TK, experts), {}
    yield "rows for", (x_TD, ids_TK, weights_TK, replace(experts, activation=Activation.RELU)), {}
    yield "one device", (x_TD.to("meta"), ids_TK, weights_TK, experts), {}
    crossed = replace(experts.fc2, weight_ENC=experts.fc2.weight_ENC.mT.contiguous().mT)
    yield "contiguous", (x_TD, ids_TK, weights_TK, replace(experts, fc2=crossed)), {}
    yield "output of shape", (x_TD, ids_TK, weights_TK, experts), {"out_TD": x_TD.double()}
    yield "still read", (x_TD, ids_TK, weights_TK, experts), {"out_TD": x_TD}


@pytest.mark.parametrize(("said", "arguments", "options"), list(_spoilt()))
def test_refuses_what_does_not_fit(said, arguments, options):
    with pytest.raises(ConfigError, match=said):
        expert_mlp(*arguments, **options)


def test_combine_on_the_cpu_leaves_dropped_rows_unread():
    y_ND = torch.tensor([[1.0, 2.0], [float("nan"), 1.0], [3.0, 4.0], [5.0, 6.0]])
    ids_TK, weights_TK = torch.tensor([[0, 9], [1, 0]]), torch.tensor([[2.0, 1.0], [0.5, 1.0]])
    torch.testing.assert_close(combine(y_ND, weights_TK, ids_TK, 2), torch.tensor([[2.0, 4.0], [6.5, 8.0]]))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("tokens", [1, 16, 64, 65, 4096])
def test_candidates_start_with_the_rule_and_survive_the_file(format_, tokens):
    shape = shape_of(drawn(Case(format=format_, dtype=torch.bfloat16))[3], tokens, 8)
    candidates = list(config_space(shape))
    assert candidates[0] == default(shape, 90) == choose("no such GPU", 90, shape)
    assert len(set(candidates)) == len(candidates) >= 10
    assert all(MlpConfig.from_dict(config.to_dict()) == config for config in candidates)
    assert [token_bucket(n) for n in (1, 2, 3, 16, 17, 4096)] == [1, 2, 4, 16, 32, 4096]


@pytest.mark.parametrize(("format_", "tokens"), [("bf16", 1), ("bf16", 9), ("bf16", 64), ("int4-g128", 16)])
def test_the_frozen_file_decides_for_its_gpu_and_bucket_only(format_, tokens):
    shape = Shape(format_, 2048, 768, 128, 8, tokens)
    chosen = choose("NVIDIA H200", 90, shape)
    assert chosen.cuda
    assert chosen != default(shape, 90) == choose("NVIDIA A100", 90, shape)
    assert choose("NVIDIA H200", 90, replace(shape, d_model=1024)) == default(replace(shape, d_model=1024), 90)


def test_no_cuda_kernels_and_no_overlapping_launches_before_hopper():
    for format_, tokens in [("bf16", 1), ("bf16", 4096), ("int4-g128", 64), ("fp8-channel", 512)]:
        older, newer = (default(Shape(format_, 2048, 768, 128, 8, tokens), capability) for capability in (80, 90))
        assert not any((older.dependent, older.cuda, older.grouped))
        assert newer.cuda == (tokens <= 64)
        assert newer.dependent == (tokens <= 64)


@pytest.mark.parametrize(
    ("format_", "tokens", "grouped"),
    [
        ("bf16", 64, False),
        ("bf16", 511, False),
        ("bf16", 512, True),
        ("bf16", 4096, True),
        ("int4-g128", 64, False),
        ("int4-g128", 65, True),
        ("f16", 4096, False),
        ("int4-g32", 4096, False),
        ("bank8-g128", 4096, False),
        ("fp8-channel", 4096, False),  # e4m3 tokens change the result: see the tuner's candidates
    ],
)
def test_the_grouped_kernel_is_chosen_where_it_leads(format_, tokens, grouped):
    shape = Shape(format_, 2048, 768, 128, 8, tokens)
    assert default(shape, 90).grouped == grouped
    assert not default(shape, 80).grouped
    others = list(config_space(shape, 90))[1:]
    assert any(not config.grouped for config in others)
    assert all(config.eight for config in others if config.grouped)
    assert any(config.grouped for config in others) == (format_ == "fp8-channel")
