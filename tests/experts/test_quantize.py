"""Quantisers against codes found by trying all of them, and against bounds that hold for any weights."""

import itertools
import sys

import numpy as np
import pytest
import torch
from expert_inputs import correlated_rows, heavy_weights, output_error

from thermoe.errors import ConfigError
from thermoe.experts import quantize, quantize_fp8
from thermoe.experts.codes import levels, nearest_codes
from thermoe.experts.compensation import compensated_codes, damped, descended_codes
from thermoe.experts.rounding import clipped_scales
from thermoe.kernels.expert_mlp import dequantize

PLAIN = [2, 3, 4, 8]
NESTED = (2, 4, 8)


def by_hand(matrix, bits, expert, row, column):
    """One weight from its code, in Python numbers."""
    code = int(matrix.code_ENC[expert, row, column]) // 2 ** (matrix.bits[-1] - bits)
    scale = float(matrix.scale_PENG[matrix.bits.index(bits), expert, row, column // matrix.group_size])
    return (code - (2**bits - 1) / 2) * scale


@pytest.mark.parametrize("columns", [1, 127, 129, 320])
@pytest.mark.parametrize("bits", [*PLAIN, NESTED, (2, 4)])
@pytest.mark.parametrize("calibrated", [False, True])
def test_codes_scales_and_planes_tell_the_same_weights(columns, bits, calibrated):
    weight = heavy_weights(2, 3, columns)
    rows = correlated_rows(40, columns)
    moment = (rows.T @ rows).expand(2, -1, -1) if calibrated else None
    matrix = quantize(weight, bits, group_size=64, moment_ECC=moment)
    assert matrix.code_ENC.dtype == torch.uint8
    assert matrix.scale_PENG.dtype == torch.float16
    assert matrix.scale_PENG.shape == (len(matrix.bits), 2, 3, -(-columns // 64))
    for b in matrix.bits:
        got = matrix.weights(b)
        for column in {0, columns // 2, columns - 1}:
            assert float(got[1, 2, column]) == pytest.approx(by_hand(matrix, b, 1, 2, column), rel=1e-6)
        if matrix.bits != (3,):
            read = torch.full((2,), b, dtype=torch.int32)
            torch.testing.assert_close(dequantize(matrix.matrices(), read), got, rtol=0, atol=0)


@pytest.mark.parametrize(("bits", "bound"), [(8, 2e-4), (4, 0.02), (3, 0.06), (2, 0.22)])
def test_error_of_rounding_to_nearest(bits, bound):
    """Mean squared error over variance; a Gaussian quantised at its best has 0.0115 at 4 bits and 0.119 at 2."""
    weight = heavy_weights(3, 16, 256)
    held = quantize(weight, bits, group_size=128).weights()
    error = float((held - weight).square().mean() / weight.square().mean())
    assert 0 < error < bound


@pytest.mark.parametrize("bits", PLAIN)
def test_no_scale_of_a_fine_grid_rounds_better_by_much(bits):
    weight = heavy_weights(1, 4, 64)
    held = quantize(weight, bits, group_size=64, unbiased=False).weights()
    found = (held - weight).square().sum(-1).double().numpy()[0]
    best = np.full(4, np.inf)
    for share in np.linspace(0.2, 1.1, 300):
        scale = weight.abs().amax(-1).double().numpy()[0] * share / ((2**bits - 1) / 2)
        code = np.clip(np.round(weight[0].double().numpy() / scale[:, None] + (2**bits - 1) / 2), 0, 2**bits - 1)
        error = ((code - (2**bits - 1) / 2) * scale[:, None] - weight[0].double().numpy()) ** 2
        best = np.minimum(best, error.sum(-1))
    assert (found <= (1.25 if bits == 8 else 1.02) * best).all()  # at 8 bits the place of single codes decides


@pytest.mark.parametrize("spread", [0.2, 1.5])
@pytest.mark.parametrize("bits", [(3,), (2, 4), NESTED])
def test_nearest_codes_are_the_best_of_all_codes(bits, spread):
    """Also where the scales of the precisions have little to do with each other."""
    generator = torch.Generator().manual_seed(1)
    count = 500
    scale = (spread * torch.randn(len(bits), count, generator=generator)).exp()
    scale = scale * torch.tensor([1.0 / 2 ** (b - 2) for b in bits]).view(-1, 1)
    target = torch.randn(len(bits), count, generator=generator)
    cost = tuple(1.0 + 3 * p for p in range(len(bits)))
    got = nearest_codes(target, scale, bits, cost)
    every = torch.arange(2 ** bits[-1], dtype=torch.uint8).view(-1, 1).expand(-1, count)
    weight = torch.tensor(cost).view(-1, 1, 1)
    all_costs = (weight * (levels(every, scale.unsqueeze(1), bits) - target.unsqueeze(1)).square()).sum(0)
    assert bool((got == got.round()).all())
    own = all_costs.gather(0, got.long().unsqueeze(0))[0]
    torch.testing.assert_close(own, all_costs.amin(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [(3,), NESTED])
def test_each_column_is_rounded_where_the_best_continuation_would_have_it(bits):
    """Before a column is rounded, the columns left have moved to where they undo most of the errors made so far."""
    columns, group_size = 70, 32
    weight = heavy_weights(2, 3, columns)
    rows = correlated_rows(300, columns)
    moment = torch.stack([rows.T @ rows / 300, (rows.T @ rows / 300).flip(0, 1)])
    cost = (1.0, 3.0, 14.0)[: len(bits)]
    scale = clipped_scales(weight, moment.diagonal(dim1=1, dim2=2), bits, group_size, cost)
    got = compensated_codes(weight, moment, scale, bits, group_size, cost)
    for expert, row in ((0, 1), (1, 2)):
        m, w = damped(moment)[expert].double(), weight[expert, row].double()
        by_column = scale[:, expert, row].repeat_interleave(group_size, dim=-1)[:, :columns]
        order = moment[expert].diagonal().argsort(descending=True).tolist()
        missed = torch.zeros(len(bits), columns, dtype=torch.float64)
        for place, column in enumerate(order):
            done, left = order[:place], order[place:]
            moved = torch.linalg.solve(m[left][:, left], m[left][:, done] @ missed[:, done].T)[0] if done else 0.0
            wished = (w[column] + moved).float().expand(len(bits))
            code = nearest_codes(wished, by_column[:, column], bits, cost)
            assert int(code) == int(got[expert, row, column])
            missed[:, column] = w[column] - levels(code, by_column[:, column], bits).double()


def test_compensation_beats_rounding_on_new_inputs():
    weight = heavy_weights(2, 24, 192)
    seen, new = correlated_rows(400, 192, seed=1), correlated_rows(200, 192, seed=2)
    moment = (seen.T @ seen).expand(2, -1, -1)
    for bits in PLAIN[:3]:
        plain = output_error(weight, quantize(weight, bits, group_size=64).weights(), new)
        compensated = output_error(weight, quantize(weight, bits, group_size=64, moment_ECC=moment).weights(), new)
        assert compensated < 0.7 * plain


def test_a_descent_never_makes_the_objective_worse():
    weight = heavy_weights(1, 6, 96)
    rows = correlated_rows(200, 96)
    moment = (rows.T @ rows / 200).unsqueeze(0)
    cost = (1.0, 6.0, 20.0)
    scale = clipped_scales(weight, moment.diagonal(dim1=1, dim2=2), NESTED, 32, cost)
    code = torch.full(weight.shape, 128, dtype=torch.uint8)

    def objective(code):
        error = weight - levels(code, scale.repeat_interleave(32, dim=-1), NESTED)
        by_precision = ((error @ damped(moment)) * error).sum((1, 2, 3))
        return float((by_precision * torch.tensor(cost)).sum())

    values = [objective(code)]
    for _ in range(3):
        code = descended_codes(weight, moment, scale, code, NESTED, 32, cost)
        values.append(objective(code))
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(values))
    assert values[-1] < 0.1 * values[0]


def test_the_bank_reads_int2_better_than_truncated_int4_and_int4_as_well_as_plain():
    weight = heavy_weights(2, 32, 256)
    seen, new = correlated_rows(600, 256, seed=1), correlated_rows(300, 256, seed=2)
    moment = (seen.T @ seen).expand(2, -1, -1)
    for given, most in ((None, 1.05), (moment, 0.5)):
        plain4 = quantize(weight, 4, group_size=128, moment_ECC=given)
        bank = quantize(weight, NESTED, group_size=128, moment_ECC=given)
        scale4 = plain4.scale_PENG[0].float().repeat_interleave(128, dim=-1)
        truncated = ((plain4.code_ENC >> 2).float() - 1.5) * 4 * scale4
        assert output_error(weight, bank.weights(2), new) < most * output_error(weight, truncated, new)
        assert output_error(weight, bank.weights(4), new) < 1.7 * output_error(weight, plain4.weights(), new)
        assert output_error(weight, bank.weights(8), new) < 0.4 * output_error(weight, plain4.weights(), new)


def test_outputs_do_not_shrink():
    weight = heavy_weights(1, 16, 256)

    def gain(held):
        return float((held * weight).sum() / weight.square().sum())

    assert gain(quantize(weight, 2, group_size=128, unbiased=False).weights()) < 0.95
    assert gain(quantize(weight, 2, group_size=128).weights()) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("bits", [*PLAIN, NESTED])
def test_groups_of_zeros_stay_zeros_and_constant_groups_keep_their_value(bits):
    weight = torch.zeros(1, 3, 128)
    weight[0, 1] = 0.25
    weight[0, 2, 64:] = -0.5
    matrix = quantize(weight, bits, group_size=64)
    for b in matrix.bits:
        held = matrix.weights(b)
        assert torch.equal(held[0, 0], torch.zeros(128))
        assert torch.equal(held[0, 2, :64], torch.zeros(64))
        torch.testing.assert_close(held[0, 1], weight[0, 1], rtol=2e-3, atol=0)
        torch.testing.assert_close(held[0, 2, 64:], weight[0, 2, 64:], rtol=2e-3, atol=0)


def test_experts_without_calibration_rows_are_rounded_and_not_nan():
    weight = heavy_weights(3, 4, 64)
    rows = correlated_rows(100, 64)
    moment = torch.stack([rows.T @ rows, torch.zeros(64, 64), rows[:1].T @ rows[:1]])
    for bits in (2, NESTED):
        matrix = quantize(weight, bits, group_size=32, moment_ECC=moment)
        held = matrix.weights()
        assert bool(held.isfinite().all())
        assert float((held[1] - weight[1]).square().mean() / weight[1].square().mean()) < 0.25


def test_the_same_weights_give_the_same_codes_whatever_lies_beside_them():
    weight = heavy_weights(5, 8, 96)
    whole, alone = quantize(weight, NESTED, group_size=32), quantize(weight[3:4], NESTED, group_size=32)
    assert torch.equal(whole.code_ENC[3], alone.code_ENC[0])
    assert torch.equal(whole.scale_PENG[:, 3], alone.scale_PENG[:, 0])


@pytest.mark.parametrize("calibrated", [False, True])
def test_large_experts_are_quantised_in_parts(monkeypatch, calibrated):
    weight = heavy_weights(3, 10, 96)
    rows = correlated_rows(200, 96)
    moment = (rows.T @ rows).expand(3, -1, -1) if calibrated else None
    whole = quantize(weight, NESTED, group_size=32, moment_ECC=moment)
    # The package's name `quantize` is the function.
    for name in ("quantize", "rounding"):
        monkeypatch.setattr(sys.modules[f"thermoe.experts.{name}"], "_CPU_ELEMENTS", 700)
    parts = quantize(weight, NESTED, group_size=32, moment_ECC=moment)
    assert torch.equal(parts.code_ENC, whole.code_ENC)
    torch.testing.assert_close(parts.scale_PENG, whole.scale_PENG, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (torch.full((1, 2, 64), float("nan")), {}, "nan"),
        (torch.full((1, 2, 64), float("inf")), {}, "inf"),
        (torch.full((1, 2, 64), 1e5), {}, "100000"),
        (torch.zeros(2, 64), {}, r"\(2, 64\)"),
        (torch.zeros(1, 0, 64), {}, r"\(1, 0, 64\)"),
        (torch.zeros(1, 2, 64, dtype=torch.int32), {}, "int32"),
        (torch.zeros(1, 2, 64), {"bits": 5}, r"\(5,\) bits"),
        (torch.zeros(1, 2, 64), {"bits": (4, 8)}, r"\(4, 8\) bits"),
        (torch.zeros(1, 2, 64), {"group_size": 96}, "groups of 96"),
        (torch.zeros(1, 2, 64), {"group_size": 0}, "groups of 0"),
        (torch.zeros(1, 2, 64), {"moment_ECC": torch.zeros(1, 32, 32)}, r"\(1, 32, 32\)"),
        (torch.zeros(1, 2, 64), {"moment_ECC": torch.full((1, 64, 64), float("nan"))}, "moments"),
    ],
)
def test_what_cannot_be_quantised_is_refused(weight, options, message):
    with pytest.raises(ConfigError, match=message):
        quantize(weight, **{"bits": 4, "group_size": 64} | options)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 130, 257)])
def test_fp8_is_within_half_a_step(blocks, shape):
    weight = heavy_weights(*shape)
    weight[0, 0] = 0.0
    matrices = quantize_fp8(weight, blocks=blocks)
    held = dequantize(matrices)
    assert matrices.scale.shape == (
        (*shape[:2],) if not blocks else (shape[0], -(-shape[1] // 128), -(-shape[2] // 128))
    )
    # e4m3 has 3 bits behind the point: half a step is 1/16 of a power of two, and 2**-10 scales below the smallest one.
    assert bool(((held - weight).abs() <= weight.abs() / 16 + 2**-10 * matrices.scale.max()).all())
    assert torch.equal(held[0, 0], torch.zeros(shape[2]))


def test_fp8_refuses_nan():
    with pytest.raises(ConfigError, match="NaN"):
        quantize_fp8(torch.tensor([[[float("nan")]]]))
