"""Models of devices that are no H200: a CPU's own limits, predictions that say so."""

from dataclasses import replace

import pytest
from cost_rows import QWEN3, make_row, synthetic_rows

from thermoe.cost.command import Fit
from thermoe.cost.database import CostDatabase
from thermoe.cost.database_command import CostsPredict
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.known_limits import NOMINAL_POWER_W, fitting_limits
from thermoe.cost.published import expected_limits
from thermoe.cost.roofline import H200
from thermoe.cost.rows import DeviceKey
from thermoe.errors import ConfigError, DataError

CPU = DeviceKey(gpu="cpu Some Processor", driver="", torch="2", triton="", kernel_revision="2")


def cpu_rows():
    """50 GB/s, 100 GFLOP/s."""
    sizes = {"device": CPU, "impl": "torch", "dtype": "float32", "num_experts": 1, "top_k": 1, "active_experts": 1}
    copies = [
        make_row(
            2.0 + n / 50e3,
            op="copy",
            tokens=n,
            routed_rows=n,
            hidden_size=256,
            inter_size=1,
            bytes_moved=float(n),
            **sizes,
        )
        for n in (1000, 100_000, 10_000_000)
    ]
    products = [
        make_row(
            2.0 + n / 1e5, op="gemm", tokens=8, routed_rows=8, hidden_size=n, inter_size=64, flops=float(n), **sizes
        )
        for n in (1_000_000, 10_000_000)
    ]
    return [*copies, *products]


def test_limits_of_a_cpu_are_what_its_rows_reached():
    limits = fitting_limits(CPU.gpu, cpu_rows())
    assert limits.bandwidth_bytes_per_s == pytest.approx(50e9, rel=0.02)
    assert limits.flops_per_s(32) == limits.flops_per_s(8) == pytest.approx(98e9, rel=0.02)
    assert limits.power_limit_w == NOMINAL_POWER_W
    assert limits.idle_power_w < NOMINAL_POWER_W


def test_limits_by_name():
    assert fitting_limits("NVIDIA H200", []) == H200
    assert fitting_limits("NVIDIA B200", []) == expected_limits("b200")
    assert fitting_limits("NVIDIA GH200 480GB", []) != H200
    assert fitting_limits("Unknown", [make_row(power_limit_w=350.0)]).power_limit_w == 350.0


def test_a_model_of_a_cpu_has_its_limits_and_says_that_energies_are_guesses(tmp_path, capsys):
    costs, out = tmp_path / "cpu.costs.json", tmp_path / "m.json"
    CostDatabase(cpu_rows()).save(costs)
    assert Fit(tables=(costs,), out=out).execute() == 0
    assert "no row has an energy" in capsys.readouterr().err
    model = KernelCostModel.load(out)
    assert model.limits.name == CPU.gpu
    assert model.limits.bandwidth_bytes_per_s < 1e11


def test_a_model_of_float32_rows_answers_for_float32_unless_it_is_asked_for_others():
    shapes = [row for row in synthetic_rows() if row.active_experts > 1]
    rows = [replace(row, device=CPU, dtype="float32", impl="loop") for row in shapes]
    packed = [replace(row, dtype="int4", impl="thermoe") for row in rows[::2]]
    model = KernelCostModel().fit(CostDatabase([*rows, *packed]))
    usual, asked = (model.predict("expert_mlp", QWEN3, 128, 64, dtype=d) for d in (None, "float32"))
    assert usual == asked
    assert usual.source == f"fitted: {CPU.gpu}"
    assert model.predict("expert_mlp", QWEN3, 128, 64, impl="thermoe") == model.predict(
        "expert_mlp", QWEN3, 128, 64, dtype="int4"
    )
    assert model.predict_many("expert_mlp", QWEN3, 128, 64).latency_s[0] == pytest.approx(usual.latency_s.value)
    assert model.get_cost("expert_mlp", 16, shape=QWEN3, distinct_experts=64) == usual
    assert model.routing_cost(QWEN3, 16).source == usual.source
    assert set(model.layer(QWEN3).bits_E) == {32.0}
    assert model.predict("expert_mlp", QWEN3, 128, 64, bits=16).source.startswith("roofline: ")
    both = KernelCostModel().fit(CostDatabase([*rows, replace(rows[0], dtype="bfloat16", impl="loop")]))
    assert both.predict("expert_mlp", QWEN3, 128, 64) == both.predict("expert_mlp", QWEN3, 128, 64, bits=16)


def test_predictions_can_be_fitted_and_stay_predictions(tmp_path):
    costs, out = tmp_path / "p.costs.json", tmp_path / "m.json"
    assert CostsPredict(gpu="b200", out=costs).execute() == 0  # from the shipped rows
    with pytest.raises(DataError, match="--predicted fits"):
        Fit(tables=(costs,), out=out).execute()
    assert Fit(tables=(costs,), out=out, predicted=True).execute() == 0
    model = KernelCostModel.load(out)
    said = model.predict("expert_mlp", QWEN3, 128, 82)
    assert said.source == "fitted: predictions for NVIDIA B200"
    assert model.limits == expected_limits("b200")
    here = KernelCostModel.shipped().predict("expert_mlp", QWEN3, 128, 82)
    assert 0.4 * here.latency_s.value < said.latency_s.value < 0.8 * here.latency_s.value  # 4.8 and 8 TB/s


def test_measurements_are_not_taken_for_predictions(tmp_path):
    costs = tmp_path / "c.costs.json"
    CostDatabase(synthetic_rows()).save(costs)
    with pytest.raises(ConfigError, match="predictions alone, got measured"):
        Fit(tables=(costs,), out=tmp_path / "m.json", predicted=True).execute()
