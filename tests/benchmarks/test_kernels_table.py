"""The kernel benchmarks without a GPU: floors by hand, the file, the checks that keep wrong results out, bad input."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.__main__ import main  # noqa: E402
from benchmarks.kernels.cell import SHAPES, Cell, WeightStore, layers_needed  # noqa: E402
from benchmarks.kernels.floors import REFERENCE_CARD, Card, expert_mlp_work, targets  # noqa: E402
from benchmarks.kernels.formats import FORMATS, make_experts  # noqa: E402
from benchmarks.kernels.registry import Entry, UnavailableError  # noqa: E402
from benchmarks.kernels.results import set_bank_targets, time_us  # noqa: E402
from benchmarks.kernels.rivals import RIVALS  # noqa: E402
from benchmarks.kernels.runner import Plan, Runner  # noqa: E402

from thermoe.profiling.random_matrices import one_expert  # noqa: E402

CPU = torch.device("cpu")
QWEN, MIXTRAL = SHAPES["qwen3-30b-a3b"], SHAPES["mixtral-8x7b"]
KEYS = {
    "op", "impl", "shape", "dtype", "tokens", "distinct_experts", "plan_included", "latency_us",
    "latency_us_sustained", "energy_mj", "energy_mj_integrated", "power_w", "floor_us", "rel_error", "kind",
}  # fmt: skip


def floor_us(shape, dtype, tokens, distinct):
    return expert_mlp_work(shape, dtype, tokens, distinct).floor_us(REFERENCE_CARD, dtype)


@pytest.mark.parametrize(
    ("dtype", "tokens", "distinct", "by_hand_us"),
    [
        ("bf16", 1, 8, 17.6),
        ("bf16", 16, 82, 181),
        ("bf16", 64, 125, 275),
        ("fp8", 1, 8, 8.8),
        ("fp8", 16, 82, 90),
        ("fp8", 64, 125, 138),
        ("int4", 1, 8, 4.5),
        ("int4", 16, 82, 47),
        ("int4", 64, 125, 71),
        ("bf16", 4096, 128, 468.5),  # 6 * 32768 * 2048 * 768 operations at 660 TFLOP/s
        ("fp8", 4096, 128, 256),
    ],
)
def test_floors_of_the_qwen_layer(dtype, tokens, distinct, by_hand_us):
    assert floor_us(QWEN, dtype, tokens, distinct) == pytest.approx(by_hand_us, rel=0.015)


def test_floor_of_the_mixtral_layer_at_int4_counts_its_scales():
    weights = 3 * 4096 * 14336
    expert_bytes = weights / 2 + 2 * weights / 128
    assert FORMATS["int4"].expert_bytes(MIXTRAL) == expert_bytes
    assert floor_us(MIXTRAL, "int4", 16, 8) == pytest.approx(8 * expert_bytes / 4.3e6, rel=1e-3)


def test_a_nested_bank_reads_what_plain_codes_of_that_precision_take():
    for bits in (2, 4, 8):
        assert FORMATS[f"bank{bits}"].expert_bytes(QWEN) == FORMATS[f"int{bits}"].expert_bytes(QWEN)


def test_targets_follow_the_card():
    slow = Card(copy_tb_s=2.15, matmul_tflop_s=330.0, fp8_tflop_s=603.5)
    work = expert_mlp_work(QWEN, "int4", 16, 82)
    found = targets(("expert_mlp", "qwen3-30b-a3b", "int4", 16), work, slow)
    assert (found["target_us"], found["target_mj"]) == (62.0, 38.0)
    assert found["target_us_this_card"] == pytest.approx(124.0)
    assert found["target_mj_this_card"] == pytest.approx(76.0)
    dense = expert_mlp_work(QWEN, "bf16", 16, 82)
    floors = targets(("expert_mlp", "qwen3-30b-a3b", "bf16", 16), dense, REFERENCE_CARD)
    assert floors["target_us"] == pytest.approx(1.05 * 180.0, rel=2e-3)
    assert targets(("expert_mlp", "qwen3-30b-a3b", "bf16", 17), dense, slow)["target_us"] is None


def test_routing_targets_do_not_follow_the_bandwidth():
    slow = Card(copy_tb_s=1.0, matmul_tflop_s=100.0, fp8_tflop_s=100.0)
    found = targets(("routing", "qwen3-30b-a3b", "f32", 16), expert_mlp_work(QWEN, "bf16", 16, 82), slow)
    assert found["target_us_this_card"] == found["target_us"] == 4.5


def row(dtype, median, **more):
    common = {"op": "expert_mlp", "impl": "thermoe", "shape_name": "x", "tokens": 1, "plan_included": True}
    latency = {"latency_us": {"median": median}, "latency_us_sustained": None, "target_us_this_card": None}
    return common | latency | {"dtype": dtype} | more


def test_the_bank_is_held_to_plain_int4_of_the_same_run():
    rows = [row("int4", 10.0), row("int4", 8.0, plan_included=False), row("bank4", 10.6)]
    set_bank_targets(rows)
    assert rows[2]["target_us_this_card"] == pytest.approx(10.5)
    assert rows[0]["target_us_this_card"] is None


def test_sustained_figures_count_where_short_rounds_flatter():
    assert time_us(row("bf16", 5.0, latency_us_sustained=6.0)) == 5.0
    assert time_us(row("bf16", 5.0, latency_us_sustained=6.0, tokens=4096)) == 6.0
    assert time_us(row("bf16", 5.0, latency_us=None)) is None


@pytest.mark.parametrize(("tokens", "expected"), [(1, 8.0), (16, 82.4), (64, 125.9)])
def test_routing_falls_as_random_scores_do(tokens, expected):
    cell = Cell("qwen3-30b-a3b", tokens, CPU, WeightStore(QWEN, CPU))
    assert cell.distinct_experts(6) == pytest.approx(expected, rel=0.03)
    assert not torch.equal(cell.input(0).ids_TK, cell.input(1).ids_TK)


def test_layers_are_enough_to_empty_the_cache_and_no_more_than_memory_holds():
    gpu = torch.device("cuda")
    for name, distinct in (("bf16", 8.0), ("int4", 8.0), ("int2", 8.0), ("bank4", 82.0)):
        count = layers_needed(QWEN, name, distinct, gpu)
        assert count * distinct * FORMATS[name].expert_bytes(QWEN) >= 4 * 60e6
        assert count * FORMATS[name].held_bytes(QWEN) <= 24e9
    assert layers_needed(MIXTRAL, "bf16", 8.0, gpu) * FORMATS["bf16"].held_bytes(MIXTRAL) <= 24e9


@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_every_format_are_those_of_a_trained_layer_in_size(name):
    experts = make_experts(name, SHAPES["tiny"], CPU, seed=3)
    for matrices, fan_in in ((experts.fc1, 192), (experts.fc2, 96)):
        weight_NC = one_expert(matrices, 5, experts.bits_E)
        assert weight_NC.dtype == torch.float64
        assert tuple(weight_NC.shape) == matrices.shape[1:]
        assert float(weight_NC.std()) == pytest.approx(fan_in**-0.5, rel=0.25)
        assert float(weight_NC.abs().max()) > 0
    other = make_experts(name, SHAPES["tiny"], CPU, seed=4)
    assert not torch.equal(one_expert(experts.fc1, 0, experts.bits_E), one_expert(other.fc1, 0, other.bits_E))


def run(tmp_path, *options):
    out = tmp_path / "results.json"
    quick = ["--shapes", "tiny", "--rounds", "2", "--seconds", "0.02", "--device", "cpu"]
    code = main(["--out", str(out), *quick, *options])
    return code, json.loads(out.read_text())


def test_the_file_holds_what_the_design_asks_for(tmp_path, capsys):
    code, results = run(
        tmp_path, "--tokens", "1,7", "--formats", "bf16,int4", "--impls", "torch_grouped_mm,torch_dense,torch"
    )
    assert code == 0
    assert set(results) == {"schema", "env", "rows", "skipped"}
    assert results["schema"] == 1
    assert results["env"]["gpu"].startswith("cpu")
    assert {"copy_tb_s", "matmul_tflop_s", "matmul_burst_tflop_s"} <= set(results["env"]["calibration"])
    assert {"date", "git_revision", "torch", "triton", "driver", "settings"} <= set(results["env"])
    assert len(results["rows"]) == 2 * (3 + 3 + 1 + 1)
    for found in results["rows"]:
        assert set(found) >= KEYS
        assert found["latency_us"]["low"] <= found["latency_us"]["median"] <= found["latency_us"]["high"]
        assert found["energy_mj"] is None
        assert (found["kind"], found["shape"]) == ("measured", {"D": 192, "I": 96, "E": 16, "k": 4})
        assert found["rel_error"] < 1e-5
    plans = [r["plan_included"] for r in results["rows"] if r["impl"] == "torch_grouped_mm"]
    assert plans == [True, False] * 2
    assert "torch_dense" in capsys.readouterr().out


def test_sustained_figures_come_with_many_tokens(tmp_path):
    _, results = run(tmp_path, "--tokens", "1024", "--ops", "expert_mlp", "--impls", "torch_grouped_mm")
    assert [r["latency_us_sustained"] is not None for r in results["rows"]] == [True, False]


def test_rivals_agree_with_each_other(tmp_path):
    pytest.importorskip("transformers")
    code, results = run(tmp_path, "--tokens", "7", "--ops", "expert_mlp", "--formats", "bf16")
    names = {r["impl"] for r in results["rows"]} - {"thermoe"}
    assert names == {"torch_grouped_mm", "torch_dense", "transformers_batched_mm", "transformers_grouped_mm"}
    assert code == 0


BUILD = {e.impl: e.build for e in RIVALS if e.op == "expert_mlp" and e.plan_included}
ROUTE = {e.policy: e.build for e in RIVALS if e.op == "routing" and e.plan_included}


def measure(op, builds, tokens=7, policy=None):
    """Rows and skipped of entries named by their place."""
    dtypes = {"routing": ("f32",), "dispatch": ("i64",)}.get(op, ("bf16",))
    entries = [Entry(op=op, impl=name, dtypes=dtypes, build=build, policy=policy) for name, build in builds.items()]
    plan = Plan(entries=entries, shapes=["tiny"], formats=["bf16"], tokens=[tokens], rounds=1, seconds=0.01)
    runner = Runner(plan, CPU, REFERENCE_CARD, None, lambda line: None)
    seen = []
    runner.run(lambda found: seen.append(len(found.rows)))
    assert seen == [len(runner.found.rows)]
    return {r["impl"]: r for r in runner.found.rows}, {s["impl"]: s["reason"] for s in runner.found.skipped}


def changed(build, change):
    def rebuilt(cell, dtype, num_layers):
        run = build(cell, dtype, num_layers)
        return lambda layer: change(*run(layer))

    return rebuilt


def one_row_off(out_TD, factor=1.001):
    wrong = out_TD.clone()
    wrong[3] *= factor
    return (wrong,)


def a_hole(out_TD):
    wrong = out_TD.clone()
    wrong[-1, -1] = float("nan")
    return (wrong,)


def test_a_wrong_result_is_not_timed():
    right = BUILD["torch_grouped_mm"]
    wrong = {"zeros": lambda y: (torch.zeros_like(y),), "one row off": one_row_off, "a hole": a_hole}
    rows, _ = measure("expert_mlp", {"right": right} | {n: changed(right, c) for n, c in wrong.items()})
    assert rows["right"]["wrong"] is None
    for name in wrong:
        assert rows[name]["wrong"]
        assert rows[name]["latency_us"] is None


def test_one_wrong_row_among_many_is_seen():
    right = BUILD["torch_grouped_mm"]
    rows, _ = measure("expert_mlp", {"off": changed(right, lambda y: one_row_off(y, 1.0005))}, tokens=64)
    assert rows["off"]["rel_error"] < 1e-4
    assert "in one row" in rows["off"]["wrong"]


def test_latency_is_per_layer():
    right = BUILD["torch_grouped_mm"]

    def slow(out_TD):
        time.sleep(0.02)
        return (out_TD,)

    rows, _ = measure("expert_mlp", {"slow": changed(right, slow)})
    assert rows["slow"]["layers"] == 2
    assert 20e3 <= rows["slow"]["latency_us"]["median"] < 38e3


def test_what_cannot_run_or_breaks_is_skipped_with_its_reason():
    def missing(cell, dtype, num_layers):
        raise UnavailableError("not installed")

    def broken(cell, dtype, num_layers):
        raise ValueError("no such\nshape")

    rows, skipped = measure("expert_mlp", {"missing": missing, "broken": broken, "right": BUILD["torch_dense"]})
    assert skipped == {"missing": "not installed", "broken": "ValueError: no such shape"}
    assert list(rows) == ["right"]


@pytest.mark.parametrize("tokens", [1, 7, 129])
def test_routing_is_checked_with_its_policy_and_its_plan(tokens):
    right = ROUTE["union"]
    wrong = {
        "free choice": ROUTE["top_k"],
        "biased weights": changed(right, lambda i, w, s, o: (i, w * 1.01, s, o)),
        "no plan": changed(right, lambda i, w, s, o: (i, w, None, None)),
        "another order": changed(right, lambda i, w, s, o: (i, w, s.flip(0), o)),
        "shifted offsets": changed(right, lambda i, w, s, o: (i, w, s, o + 1)),
        "id out of range": changed(right, lambda i, w, s, o: (i + 16, w, s, o)),
    }
    rows, _ = measure("routing", {"right": right} | wrong, tokens, policy="union")
    assert rows["right"]["wrong"] is None
    assert rows["right"]["policy"] == "union_k0_2"
    escaped = [name for name in wrong if rows[name]["wrong"] is None]
    assert escaped == (["free choice"] if tokens == 129 else [])  # 129 tokens load all 16 experts


def test_the_plan_alone_is_checked():
    right = next(e.build for e in RIVALS if e.op == "dispatch")
    wrong = {"flipped": changed(right, lambda s, o: (s.flip(0), o)), "short": changed(right, lambda s, o: (s, o[:-1]))}
    rows, _ = measure("dispatch", {"right": right} | wrong)
    assert [rows[name]["wrong"] is None for name in ("right", "flipped", "short")] == [True, False, False]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ops", "expert_mpl"], ["expert_mpl", "expert_mlp"]),
        (["--impls", "vllm"], ["vllm", "torch_grouped_mm"]),
        (["--ops", "dequantize", "--impls", "torch_dense"], ["dequantize", "torch_dense"]),
        (["--shapes", "qwen"], ["qwen", "mixtral-8x7b"]),
        (["--formats", "int3"], ["int3", "int4"]),
        (["--tokens", "1,0"], ["1,0"]),
        (["--tokens", ""], ["--tokens"]),
        (["--tokens", "many"], ["many"]),
        (["--rounds", "0"], ["--rounds 0"]),
        (["--seconds", "nan"], ["nan"]),
        (["--energy", "--device", "cpu"], ["--energy", "GPU"]),
    ],
)
def test_bad_input_gives_one_line_and_2(options, words, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "r.json"), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("benchmarks: error: ")
    assert all(word in error for word in words)
    assert not (tmp_path / "r.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "r.json"), "--device", "cuda"]) == 2
    assert "no GPU" in capsys.readouterr().err
