"""Calls beside their parts, on rows made up so that every term of the difference is known beforehand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cost_rows import KEY, make_row

from thermoe.commands.costs_parts import CostsParts
from thermoe.cost.database import CostDatabase
from thermoe.cost.fusing import explain
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.known_limits import KnownLimits, limits_of
from thermoe.cost.parts import find_calls
from thermoe.cost.rows import DeviceKey
from thermoe.errors import ConfigError, DataError
from thermoe.types import Kind

H200 = DeviceKey(gpu="NVIDIA H200", driver="1", torch="2", triton="3", kernel_revision="2")
# 1 MB takes 1 us, 1 M operations take 1 us, idle 100 W, 1 mJ a MB, 2 mJ a M operations.
ROUND = KnownLimits(
    source="made up",
    launch_s=2e-6,
    bandwidth_bytes_per_s=1e12,
    flops_per_s=1e12,
    idle_power_w=100.0,
    joules_per_byte=1e-9,
    joules_per_flop=2e-9,
)


def cost(op, impl, latency_us, megabytes, *, dtype="bfloat16", mega_flops=0.1, energy_mj=None, **changes):
    """A row whose energy is that of its window."""
    return make_row(
        latency_us,
        device=H200,
        op=op,
        impl=impl,
        dtype=dtype,
        bytes_moved=megabytes * 1e6,
        flops=mega_flops * 1e6,
        energy_mj=energy_mj,
        latency_sustained_us=None if energy_mj is None else latency_us,
        power_w=None if energy_mj is None else 1e3 * energy_mj / latency_us,
        **changes,
    )


def int4_rows(**energies):
    """A fused call of 30 MB in 40 us, and parts that move 150 MB in 190 us."""
    j = dict.fromkeys(("fused", "dispatch", "dequant", "fc1", "act", "fc2", "combine")) | energies
    return [
        cost("expert_mlp", "thermoe", 40.0, 30.0, dtype="int4", energy_mj=j["fused"]),
        cost("dispatch", "torch", 10.0, 5.0, energy_mj=j["dispatch"], active_experts=128),
        cost("dequant_unpack_op", "torch", 90.0, 75.0, dtype="int4", energy_mj=j["dequant"], routed_rows=64),
        cost("linear_fc1", "grouped_mm", 50.0, 40.0, energy_mj=j["fc1"]),
        cost("activation", "torch", 5.0, 2.0, energy_mj=j["act"], hidden_size=64),
        cost("linear_fc2", "grouped_mm", 25.0, 20.0, energy_mj=j["fc2"]),
        cost("combine", "thermoe", 10.0, 8.0, energy_mj=j["combine"], active_experts=128),
        cost("copy", "torch", 2.0, 1.0, hidden_size=2048, inter_size=1, num_experts=1, top_k=1, active_experts=1),
    ]


def test_every_term_of_the_time_is_as_made_up():
    (call,) = find_calls(int4_rows())
    assert [p.op for p in call.parts] == [
        "dispatch",
        "dequant_unpack_op",
        "linear_fc1",
        "activation",
        "linear_fc2",
        "combine",
    ]
    time = explain(call, ROUND).time
    assert (time.parts, time.fused) == pytest.approx((190e-6, 40e-6))
    assert time.launches == pytest.approx(10e-6)  # five of six
    assert time.traffic == pytest.approx(120e-6)  # 150 MB less 30
    assert time.over_floor_parts == pytest.approx(28e-6)
    assert time.over_floor_fused == pytest.approx(8e-6)
    assert time.predicted == pytest.approx(60e-6)
    said = time.launches + time.traffic + time.over_floor_parts - time.over_floor_fused
    assert said == pytest.approx(time.parts - time.fused)


def test_every_term_of_the_energy_is_as_made_up():
    rows = int4_rows(fused=40.0, dispatch=6.0, dequant=90.0, fc1=48.0, act=3.0, fc2=24.0, combine=9.0)
    (call,) = find_calls(rows)
    energy = explain(call, ROUND).energy
    assert (energy.parts, energy.fused) == pytest.approx((180e-3, 40e-3))
    assert energy.launches == pytest.approx(1e-3)  # 100 W over 10 us
    assert energy.traffic == pytest.approx(12e-3)  # 100 W over 120 us
    assert energy.moved == pytest.approx(120e-3)  # 120 MB
    assert energy.operations == pytest.approx(1e-3)  # 0.5 M operations
    assert energy.over_floor == pytest.approx(2e-3)  # 100 W over 28 - 8 us
    assert energy.rest == pytest.approx(4e-3)
    assert energy.predicted == pytest.approx(46e-3)


def test_work_bound_by_operations_saves_no_time_by_moving_less():
    rows = [
        cost("expert_mlp", "thermoe", 100.0, 10.0, mega_flops=90.0),
        cost("dispatch", "torch", 4.0, 1.0, mega_flops=0.0),
        cost("linear_fc1", "grouped_mm", 70.0, 30.0, mega_flops=60.0),
        cost("activation", "torch", 5.0, 1.0),
        cost("linear_fc2", "grouped_mm", 40.0, 25.0, mega_flops=30.0),
        cost("combine", "torch", 4.0, 1.0),
    ]
    (call,) = find_calls(rows)
    assert explain(call, ROUND).time.traffic == pytest.approx(3e-6)  # of the three short parts only


def test_products_of_torch_in_a_row_save_neither_launches_nor_traffic():
    rows = [
        cost("expert_mlp", "grouped_mm", 63.0, 30.0),
        cost("linear_fc1", "grouped_mm", 34.0, 20.0),
        cost("linear_fc1", "loop", 1.0, 20.0),
        cost("activation", "torch", 5.0, 2.0),
        cost("linear_fc2", "grouped_mm", 21.0, 10.0),
    ]
    (call,) = find_calls(rows)
    assert [p.impl for p in call.parts] == ["grouped_mm", "torch", "grouped_mm"]
    time = explain(call, ROUND).time
    assert (time.launches, time.traffic) == (0.0, 0.0)
    assert time.over_floor_fused - time.over_floor_parts == pytest.approx(3e-6)


def test_the_reference_on_a_cpu_is_no_fused_kernel():
    cpu = DeviceKey(gpu="cpu Some Processor", driver="", torch="2", triton="", kernel_revision="2")
    rows = [
        make_row(
            r.latency_us, device=cpu, op=r.op, impl=r.impl, dtype=r.dtype, bytes_moved=r.bytes_moved, flops=r.flops
        )
        for r in int4_rows()
    ]
    explained = explain(find_calls(rows)[0], ROUND)
    assert (explained.time.launches, explained.time.traffic) == (0.0, 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"routed_rows": 136},
        {"active_experts": 31},
        {"load": "zipf"},
        {"hidden_size": 1024},
        {"device": KEY},
        {"kind": Kind.PREDICTED},
        {"dtype": "float32"},
    ],
)
def test_a_part_at_another_size_load_device_or_kind_is_no_part(change):
    rows = [replace(r, **change) if r.op == "linear_fc1" else r for r in int4_rows()]
    calls = [c for c in find_calls(rows) if c.row.op == "expert_mlp"]
    assert calls[0].missing == ("linear_fc1 in bfloat16",)


def test_several_occasions_count_with_their_median():
    rows = int4_rows()
    again = [
        replace(rows[0], occasion=name, latency_us=us, latency_low_us=us, latency_high_us=us)
        for name, us in (("a", 44.0), ("b", 60.0))
    ]
    (call,) = find_calls([*rows, *again])
    assert call.fused.latency_s == pytest.approx(44e-6)
    assert call.fused.rows == 3


def test_a_model_stands_in_for_parts_that_were_not_measured():
    rows = [r for r in int4_rows() if r.op != "activation"]
    others = [
        cost("activation", "torch", 2.0 + n / 100, n / 100, inter_size=768, routed_rows=n, tokens=max(1, n // 8))
        for n in (64, 256, 512, 1024, 4096)
    ]
    model = KernelCostModel().fit(CostDatabase(others))
    (without,) = find_calls(rows)
    assert without.missing == ("activation in bfloat16",)
    (call,) = find_calls(rows, model)
    assert not call.missing
    (activation,) = [p for p in call.parts if p.op == "activation"]
    assert activation.kind is Kind.PREDICTED
    assert activation.latency_s == pytest.approx(3.28e-6, rel=0.15)
    assert explain(call, ROUND).kind is Kind.PREDICTED


def test_limits_of_devices_that_are_known_and_of_others():
    rows = int4_rows()
    assert limits_of("NVIDIA H200", rows).launch_s == pytest.approx(2e-6)
    assert limits_of("NVIDIA H200", rows).idle_power_w == 117.0
    assert limits_of("NVIDIA B200", []).bandwidth_bytes_per_s > 6e12
    other = limits_of("Test GPU", rows)
    assert other.bandwidth_bytes_per_s == pytest.approx(0.5e12)
    assert other.idle_power_w is None
    (call,) = find_calls(rows)
    assert explain(call, limits_of("Test GPU", [])).time is None


def test_command_prints_what_the_terms_are(tmp_path, capsys):
    path = tmp_path / "c.costs.json"
    CostDatabase(int4_rows(fused=40.0, dispatch=6.0, dequant=90.0, fc1=48.0, act=3.0, fc2=24.0, combine=9.0)).save(path)
    assert CostsParts(databases=(path,), json=True).execute() == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "measured"
    assert found["latency_us"]["difference"] == pytest.approx(150.0)
    energy = found["energy_mj"]
    terms = ("launches", "traffic", "moved", "operations", "over_floor", "rest")
    assert sum(energy[t] for t in terms) == pytest.approx(energy["difference"])
    assert energy["error_pct"] == pytest.approx(100.0 * (energy["predicted_from_parts"] / 40.0 - 1.0))
    assert CostsParts(databases=(path,)).execute() == 0
    assert "1 of 1 expert MLP calls" in capsys.readouterr().out


def test_command_says_what_is_missing(tmp_path):
    path = tmp_path / "c.costs.json"
    CostDatabase([r for r in int4_rows() if r.op in ("expert_mlp", "copy")]).save(path)
    with pytest.raises(DataError, match="lacks dispatch in bfloat16, dequant_unpack_op in int4"):
        CostsParts(databases=(path,)).execute()
    CostDatabase([r for r in int4_rows() if r.op == "copy"]).save(path)
    with pytest.raises(DataError, match="no expert_mlp row"):
        CostsParts(databases=(path,)).execute()
    with pytest.raises(ConfigError, match="no database"):
        CostsParts(databases=()).execute()


def test_a_model_that_knows_no_part_is_not_asked_for_again(tmp_path):
    costs, fitted = tmp_path / "c.costs.json", tmp_path / "m.json"
    CostDatabase([cost("expert_mlp", "grouped_mm", 40.0, 30.0)]).save(costs)
    with pytest.raises(
        DataError, match=r"lacks linear_fc1 in bfloat16.*, or predict them: thermoe costs parts --model"
    ):
        CostsParts(databases=(costs,)).execute()
    KernelCostModel().fit(CostDatabase.load(costs)).save(fitted)
    with pytest.raises(DataError) as caught:
        CostsParts(databases=(costs,), model=fitted).execute()
    told = str(caught.value)
    assert "lacks linear_fc1 in bfloat16, activation in bfloat16, linear_fc2 in bfloat16: " in told
    assert f"{fitted} does not know them either (it was fitted to expert_mlp)" in told
    assert told.endswith("measure them with thermoe profile and fit again")
    assert "--model" not in told
    near = [cost("linear_fc1", "loop", 9.0, 3.0), *CostDatabase.load(costs).rows]
    KernelCostModel().fit(CostDatabase(near)).save(fitted)
    with pytest.raises(DataError, match=r"\(it was fitted to linear_fc1 as loop in bfloat16\)"):
        CostsParts(databases=(costs,), model=fitted).execute()


def test_a_model_without_a_database_is_told_what_lacks(tmp_path):
    with pytest.raises(ConfigError, match=r"no database was named beside --model m.json: give the \.costs\.json files"):
        CostsParts(databases=(), model=Path("m.json")).execute()
