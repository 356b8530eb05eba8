"""Every Triton path of the expert MLP against float64, with every uninitialised value NaN."""

from dataclasses import replace

import pytest
import torch
from mlp_cases import FORMATS, Case, drawn, relative_error, tolerance, wanted

from thermoe.kernels.combine import combine_reference
from thermoe.kernels.combine.triton import combine_triton
from thermoe.kernels.expert_mlp import Activation
from thermoe.kernels.expert_mlp.configs import MlpConfig, Tile, choose, shape_of
from thermoe.kernels.expert_mlp.op import flatten, unflatten
from thermoe.kernels.expert_mlp.triton_launch import expert_mlp_few, expert_mlp_many

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Tile(rows=32, tokens=16, columns=32, stages=2, warps=4)
CONFIG = MlpConfig(fc1=SMALL, fc2=replace(SMALL, rows=64))
RUN = {"few": expert_mlp_few, "many": expert_mlp_many}


@pytest.fixture(autouse=True)
def _poisoned_workspaces():
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def _on(device, experts):
    fc1, fc2, extras, layout = flatten(experts, None)
    moved = [[tensor.to(device) for tensor in tensors] for tensors in (fc1, fc2, extras)]
    return unflatten(*moved, layout)[0]


def check(path: str, case: Case, config: MlpConfig = CONFIG) -> None:
    x_TD, ids_TK, weights_TK, experts = drawn(case)
    want_TD = wanted(x_TD, ids_TK, weights_TK, experts)
    assert want_TD.square().mean() > 1e-3  # zeros must not pass
    out_TD = torch.full_like(x_TD, float("nan")).to(DEVICE)

    RUN[path](x_TD.to(DEVICE), ids_TK.to(DEVICE), weights_TK.to(DEVICE), _on(DEVICE, experts), config, out_TD)

    assert relative_error(out_TD, want_TD) < tolerance(case)


@pytest.mark.parametrize("format_", FORMATS)
def test_formats_with_dropped_slots_biases_and_ragged_widths(format_):
    check("few", Case(format=format_, d_model=160, inter_size=65, routing="dropped", biases=True))


@pytest.mark.parametrize("format_", ["dense", "int4", "bank8", "fp8-block"])
def test_tiles_of_a_plan(format_):
    tail = replace(CONFIG, fc1=replace(SMALL, tail=8), scale_in=True)
    check("many", Case(format=format_, d_model=129, inter_size=160, tokens=9, routing="dropped"), tail)


def test_a_token_that_is_nan_spoils_no_other():
    x_TD, ids_TK, weights_TK, experts = drawn(Case(d_model=52, inter_size=36, tokens=9))
    want_TD = wanted(x_TD, ids_TK, weights_TK, experts)
    x_TD[4] = float("nan")
    out_TD = torch.zeros_like(x_TD).to(DEVICE)

    expert_mlp_many(x_TD.to(DEVICE), ids_TK.to(DEVICE), weights_TK.to(DEVICE), _on(DEVICE, experts), CONFIG, out_TD)

    others = torch.arange(9) != 4
    assert out_TD[4].isnan().all()
    assert relative_error(out_TD.cpu()[others], want_TD[others]) < tolerance(Case())


def test_e4m3_tokens_meet_e4m3_weights():
    tile = Tile(rows=32, tokens=16, columns=32, stages=2, warps=4, tail=8)
    case = Case(format="fp8-channel", d_model=160, inter_size=96, tokens=21, routing="dropped", biases=True)
    x_TD, ids_TK, weights_TK, experts = drawn(case)
    out_TD = torch.full_like(x_TD, float("nan")).to(DEVICE)

    config = MlpConfig(fc1=tile, fc2=tile, eight=True)
    expert_mlp_many(
        x_TD.to(DEVICE), ids_TK.to(DEVICE), weights_TK.to(DEVICE), _on(DEVICE, experts), config, out_TD)  # fmt: skip

    assert relative_error(out_TD, wanted(x_TD, ids_TK, weights_TK, experts)) < 6e-2  # 3 bits of mantissa, twice


@pytest.mark.parametrize("activation", list(Activation))
def test_activations(activation):
    check("few", Case(activation=activation, biases=True, d_model=32, inter_size=32))


@pytest.mark.parametrize(("group_size", "columns"), [(32, 96), (64, 192), (128, 129), (256, 300)])
def test_group_sizes(group_size, columns):
    check("few", Case(format="int4", group_size=group_size, d_model=columns, inter_size=32, tokens=3))


@pytest.mark.parametrize("path", ["few", "many"])
def test_all_tokens_at_one_expert_take_several_tiles(path):
    check(path, Case(routing="one", tokens=21, d_model=32, inter_size=32))


@pytest.mark.parametrize("tokens", [1, 63, 129])
def test_numbers_of_tokens_with_fewer_and_more_slots_than_experts(tokens):
    check("few" if tokens < 129 else "many", Case(tokens=tokens, experts=9, d_model=32, inter_size=32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    check("few", Case(format="int8", dtype=dtype, d_model=64, inter_size=32))


def test_combination_never_reads_what_was_dropped():
    generator = torch.Generator().manual_seed(0)
    y_ND = torch.randn(14, 129, generator=generator)
    ids_TK = torch.tensor([[0, 1], [2, -1], [3, 0], [1, 2], [0, 2**33], [2, 4], [1, 0]])
    weights_TK = torch.rand(7, 2, generator=generator) + 0.1
    weights_TK[0, 1] = 0.0
    y_ND[[1, 3, 9, 11]] = float("nan")
    out_TD = torch.full((7, 129), float("nan"), device=DEVICE)

    combine_triton(y_ND.to(DEVICE), weights_TK.to(DEVICE), ids_TK.to(DEVICE), 4, out_TD)

    want_TD = combine_reference(y_ND, weights_TK, ids_TK, 4, dtype=torch.float64)
    assert relative_error(out_TD, want_TD) < 1e-6
    assert want_TD.abs().min(dim=1).values.max() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("tokens", [1, 7, 63, 129, 1000])
def test_chosen_configurations_at_awkward_sizes(format_, tokens):
    case = Case(
        format=format_, dtype=torch.bfloat16, tokens=tokens, top_k=4, experts=32, d_model=2880, inter_size=320,
        group_size=64, biases=True, activation=Activation.SWIGLU_CLAMPED)  # fmt: skip
    experts = drawn(case)[3]
    check(
        "few" if tokens <= 64 else "many",
        case,
        replace(choose(torch.cuda.get_device_name(), 90, shape_of(experts, tokens, 4)), cuda=False),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("path", ["few", "many"])
def test_same_input_gives_the_same_bits_and_a_graph_reads_new_precisions(path):
    case = Case(format="bank8", dtype=torch.bfloat16, tokens=40, d_model=512, inter_size=256, group_size=128)
    x_TD, ids_TK, weights_TK, experts = drawn(case)
    experts = _on("cuda", experts)
    arguments = (x_TD.cuda(), ids_TK.cuda(), weights_TK.cuda(), experts, CONFIG)
    out_TD, again_TD = torch.empty_like(arguments[0]), torch.empty_like(arguments[0])
    RUN[path](*arguments, out_TD)
    RUN[path](*arguments, again_TD)
    assert torch.equal(out_TD, again_TD)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        RUN[path](*arguments, out_TD)
    for bits in (2, 4, 8):
        experts.bits_E.fill_(bits)
        graph.replay()
        changed = replace(drawn(case)[3], bits_E=torch.full((case.experts,), bits, dtype=torch.int32))
        assert relative_error(out_TD, wanted(x_TD, ids_TK, weights_TK, changed)) < tolerance(case)
