"""What the benchmarks do without a GPU: every arm, every check, the files; only figures of energy are missing."""

import csv
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import benchmarks.stack  # noqa: E402
from benchmarks.decoder import Decoder, load, perplexity, text_blocks  # noqa: E402
from benchmarks.stack import MoeStack  # noqa: E402
from benchmarks.windows import Sample, interleaved, sensor_figures, summarise_arm  # noqa: E402

from benchmarks import arms as make  # noqa: E402
from benchmarks import moe_stack, reference_checks, reference_gpu  # noqa: E402
from thermoe.types import Kind, MoEShape, SysState  # noqa: E402

CPU = torch.device("cpu")
SHAPE = MoEShape(num_layers=2, hidden_size=24, inter_size=8, num_experts=12, top_k=3)


def run(main, tmp_path, *options):
    code = main(["--out", str(tmp_path), "--smoke", "--seconds", "0.01", "--trials", "2", *options])
    results = json.loads((tmp_path / "results.json").read_text())
    with (tmp_path / "samples.csv").open() as file:
        return code, results, list(csv.DictReader(file))


def test_moe_stack(tmp_path):
    code, results, samples = run(moe_stack.main, tmp_path, "--batches", "8")
    assert (code, results["schema"], results["checks"]["passed"]) == (0, 1, True)
    rows = {row["arm"]: row for row in results["rows"]}
    assert list(rows)[:3] == ["baseline", "opportunistic_k0_4", "opportunistic_k0_3"]
    assert len(samples) == 2 * len(rows)
    for row in rows.values():
        assert {"op", "impl", "shape", "dtype", "tokens", "latency_us", "floor_us", "rel_error", "kind"} <= set(row)
        assert row["latency_us"]["low"] <= row["latency_us"]["median"] <= row["latency_us"]["high"]
        assert row["energy_mj"] is None
        assert row["kind"] == "measured"
    for k0 in (4, 3):
        settings = rows[f"kernel_aware_as_k0_{k0}"]["arm_settings"]
        priced, target = rows[f"kernel_aware_as_k0_{k0}"]["distinct_experts"]["median"], settings["target_distinct"]
        assert priced == pytest.approx(target, rel=0.05)
    assert rows["baseline"]["gate_mass_kept"]["median"] == 1.0
    assert rows["opportunistic_k0_3"]["distinct_experts"]["median"] < rows["baseline"]["distinct_experts"]["median"]


def test_moe_stack_on_both_implementations(tmp_path):
    code, results, samples = run(moe_stack.main, tmp_path, "--batches", "4", "--impls", "thermoe,torch")
    assert code == 0
    assert results["checks"]["thermoe"]["passed"]
    assert results["checks"]["torch"]["passed"]
    rows = {row["arm"]: row for row in results["rows"]}
    own = [name for name, row in rows.items() if row["impl"] == "thermoe"]
    assert list(rows) == own + [f"torch/{name}" for name in own]
    assert {s["arm"] for s in samples} == set(rows)
    counted = [results["checks"][impl]["new_knobs_at_next_replay"]["by_plain_calls"] for impl in ("thermoe", "torch")]
    assert counted[0] == counted[1]
    assert {row["impl"] for row in rows.values()} == {"thermoe", "torch"}
    assert rows["torch/baseline"]["change_pct"]["ms_per_step"]["median"] == 0.0


def test_moe_stack_refuses_an_unknown_implementation(tmp_path, capsys):
    with pytest.raises(SystemExit):
        moe_stack.main(["--out", str(tmp_path), "--impls", "magic"])
    assert "choose from thermoe, torch" in capsys.readouterr().err


def test_reference_gpu(tmp_path):
    code, results, samples = run(reference_gpu.main, tmp_path)
    assert code == 0
    assert results["checks"]["bits"]["attached_equals_bare"]
    assert all(case["works"] and case["watched_tokens_equal_bare"] for case in results["checks"]["generate"].values())
    rows = {row["arm"]: row for row in results["rows"]}
    assert rows["baseline"]["perplexity"] == rows["bare"]["perplexity"]
    assert rows["opportunistic_k0_3"]["perplexity"] != rows["bare"]["perplexity"]
    assert {s["arm"] for s in samples} == set(rows)
    assert [s["distinct_experts"] == "" for s in samples] == [s["arm"] == "bare" for s in samples]
    assert "/" not in json.dumps(results["env"]["settings"])


def test_reference_gpu_needs_a_model(tmp_path, capsys):
    with pytest.raises(SystemExit):
        reference_gpu.main(["--out", str(tmp_path)])
    assert "--model and --text are needed" in capsys.readouterr().err


@pytest.mark.parametrize("impl", benchmarks.stack.IMPLS)
def test_stack_agrees_with_a_float64_restatement_of_the_whole(impl):
    with torch.inference_mode():
        stack = MoeStack(SHAPE, 5, CPU, torch.float32, impl)
        stack.step()
        hidden = stack.x_TD.double()
        for router, gate_up, down in zip(stack.router_ED, stack.gate_up_EHD, stack.down_EDI, strict=True):
            normed = hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            probabilities = (normed @ router.double().T).softmax(-1)
            added = torch.zeros_like(hidden)
            for token in range(5):
                best = probabilities[token].sort(descending=True).indices[:3]
                for expert in best:
                    gate, up = (gate_up[expert].double() @ normed[token]).chunk(2)
                    weight = probabilities[token, expert] / probabilities[token, best].sum()
                    added[token] += weight * (down[expert].double() @ (gate / (1 + (-gate).exp()) * up))
            hidden = hidden + added
        want = hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(stack.out_TD.double(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("impl", benchmarks.stack.IMPLS)
def test_checks_of_the_stack_see_a_wrong_routing_and_a_wrong_sum(monkeypatch, impl):
    with torch.inference_mode():
        stack = MoeStack(SHAPE, 5, CPU, torch.float32, impl)
        assert stack.own_routing_errors()[0] == 0
        assert stack.rel_error() < 1e-5
        bias = np.zeros((2, 12))
        bias[1, 4] = 50.0
        stack.knobs.write(replace(make.neutral(SHAPE), bias=bias))
        assert stack.own_routing_errors()[0] > 0
        assert stack.rel_error() < 1e-5
        combine, experts = benchmarks.stack.combine, benchmarks.stack.expert_mlp
        monkeypatch.setattr(benchmarks.stack, "combine", lambda y, order, gates: combine(y, order, gates.flip(1)))
        flipped = lambda x, ids, gates, weights, plan: experts(x, ids, gates.flip(1), weights)  # noqa: E731
        monkeypatch.setattr(benchmarks.stack, "expert_mlp", flipped)
        assert stack.rel_error() > 0.05


@pytest.mark.parametrize("impl", benchmarks.stack.IMPLS)
def test_warm_up_leaves_the_stack_as_it_was(impl):
    with torch.inference_mode():
        stack = MoeStack(SHAPE, 5, CPU, torch.float32, impl)
        stack.step()
        before = stack.out_TD.clone()
        stack.warm_up()
        assert stack.counters.drain().num_groups == 0
        assert not stack.union
        stack.step()
        assert torch.equal(stack.out_TD, before)


def test_price_is_found_where_the_count_meets_its_target():
    price = make.find_price(lambda price: 100.0 / (1.0 + price), 60.0, halvings=40)
    assert price == pytest.approx(2.0 / 3.0, rel=1e-6)


def test_arms_run_forwards_and_backwards_in_turn():
    assert "".join(name for _, name in interleaved("AB", 3)) == "ABBAAB"
    assert [trial for trial, _ in interleaved("AB", 3)] == [0, 0, 1, 1, 2, 2]


def states(power_w: float) -> list[SysState]:
    return [
        SysState(
            time_s=0.02 * i,
            wall_time_s=0.0,
            source="test",
            kind=Kind.MEASURED,
            energy_j=power_w * 0.1 * (i // 5),
            power_w=1.02 * power_w,
            throttle_reasons=0x4 if i == 20 else 0x1,
        )
        for i in range(101)
    ]


def test_energy_per_token_by_both_estimates():
    figures = sensor_figures(states(500.0), 1e-4)
    assert figures["j_per_token"] == pytest.approx(0.05)
    assert figures["j_per_token_integrated"] == pytest.approx(0.051)
    assert figures["disagreement_pct"] == pytest.approx(2.0)
    assert (figures["throttled"], figures["throttle_reasons"]) == (True, 0x5)
    assert sensor_figures([], 1e-4) == {}


def sample(arm: str, trial: int, joules: float | None) -> Sample:
    return Sample(
        arm=arm,
        trial=trial,
        position=0,
        steps=1,
        window_s=1.0,
        ms_per_step=1.0,
        tokens_per_s=1.0,
        distinct_experts=None,
        gate_mass_kept=None,
        j_per_token=joules,
    )


def test_changes_are_paired_within_a_trial():
    references = {trial: sample("bare", trial, joules) for trial, joules in enumerate((1.0, 2.0, 4.0))}
    summary = summarise_arm([sample("x", t, j) for t, j in enumerate((0.5, 1.0, 2.0))], references)
    assert summary["change_pct"]["j_per_token"] == {"median": -50.0, "low": -50.0, "high": -50.0}
    assert summary["j_per_token_integrated"] is None


def test_decode_position_by_position_gives_the_perplexity_of_whole_blocks():
    model = load(None, CPU)
    blocks = text_blocks(None, None, 7, 2, CPU)
    decoder, losses = Decoder(model, blocks), []
    for block, position in itertools.product(range(2), range(7)):
        logits = decoder.step()
        if position < 6:
            losses.append(torch.nn.functional.cross_entropy(logits, blocks[block][:, position + 1]))
    assert float(torch.stack(losses).mean().exp()) == pytest.approx(perplexity(model, blocks), rel=1e-5)


def test_a_failing_generate_is_written_down_and_leaves_the_model_detached():
    model, blocks = load(None, CPU), text_blocks(None, None, 20, 1, CPU)
    bench = reference_gpu.Bench(model, blocks)

    def broken():
        raise RuntimeError("no hooks\ntoday")

    knobs = make.union_of_first(bench.shape, 2)
    found = reference_checks.generate_modes(model, blocks, broken, knobs, static=False)
    assert {case["error"] for case in found.values()} == {"RuntimeError: no hooks today"}
    bench.attach().remove()


def test_a_changed_logit_is_seen():
    model, blocks = load(None, CPU), text_blocks(None, None, 20, 1, CPU)
    bench = reference_gpu.Bench(model, blocks)

    def steered():
        hooks = bench.attach()
        hooks.set_knobs(make.union_of_first(bench.shape, 1))
        return hooks

    found = reference_checks.same_bits(model, blocks, steered)
    assert (found["bare_repeats_itself"], found["attached_equals_bare"], found["detached_equals_bare"]) == (
        True,
        False,
        True,
    )
