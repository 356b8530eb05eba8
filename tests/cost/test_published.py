from dataclasses import replace

import pytest
from cost_rows import make_row

from thermoe.cost.database import CostDatabase
from thermoe.cost.database_command import CostsPredict
from thermoe.cost.published import DATA_SHEETS, carry_over, expected_limits
from thermoe.cost.roofline import H200
from thermoe.errors import ConfigError, DataError
from thermoe.types import Kind

STREAM = {"flops": 1e6, "bytes_moved": 4e9, "energy_mj": 600.0, "latency_sustained_us": 1000.0, "power_w": 600.0}


def row(**changes):
    return make_row(1000.0, **(STREAM | changes))


def test_an_h200_predicts_itself():
    (same,) = carry_over([row()], "h200").rows
    assert same.latency_us == pytest.approx(1000.0)
    assert same.energy_mj == pytest.approx(600.0)
    limits, measured = expected_limits("h200").as_dict(), H200.as_dict()
    assert limits.pop("name") == measured.pop("name")
    assert limits == pytest.approx(measured)


def test_memory_bound_rows_follow_the_bandwidth_and_matrix_products_the_rate():
    (stream,) = carry_over([row()], "a100").rows
    assert stream.latency_us == pytest.approx(1000.0 * 4.8 / 2.039, rel=0.01)
    (product,) = carry_over([row(flops=1e12, bytes_moved=1e6)], "b200").rows
    assert product.latency_us == pytest.approx(1000.0 * 989.4 / 2250, rel=0.01)


def test_a_small_row_is_all_launch_and_stays():
    (small,) = carry_over([row(flops=1.0, bytes_moved=1.0)], "b200").rows
    assert small.latency_us == pytest.approx(1000.0, rel=1e-3)


@pytest.mark.parametrize("gpu", DATA_SHEETS)
def test_what_is_carried_over_is_marked_and_keeps_the_power_limit(gpu):
    hot = row(flops=1e12, bytes_moved=1e9, energy_mj=699.0, power_w=699.0)
    for carried in carry_over([row(), hot], gpu).rows:
        assert carried.kind is Kind.PREDICTED
        assert carried.device.gpu == DATA_SHEETS[gpu].gpu
        assert carried.power_w <= DATA_SHEETS[gpu].power_limit_w * (1 + 1e-9)
        assert carried.energy_mj == pytest.approx(carried.power_w * carried.latency_sustained_us * 1e-3)
        assert (carried.temp_c, carried.throttled, carried.rel_error) == (None, None, None)


def test_at_its_limits_a_board_draws_the_share_of_its_power_that_an_h200_draws():
    for name in DATA_SHEETS:
        limits = expected_limits(name)
        reading_w = limits.idle_power_w + limits.joules_per_byte * limits.bandwidth_bytes_per_s
        h200_w = H200.idle_power_w + H200.joules_per_byte * H200.bandwidth_bytes_per_s
        assert reading_w / limits.power_limit_w == pytest.approx(h200_w / H200.power_limit_w)


def test_predicted_rows_are_not_carried_over_again():
    with pytest.raises(DataError, match="nothing to carry over"):
        carry_over(carry_over([row()], "a100").rows, "b200")


def test_command_writes_a_database_and_refuses_other_gpus(tmp_path):
    measured, out = tmp_path / "a.costs.json", tmp_path / "b.costs.json"
    with_name = row(
        device=row().device.__class__(gpu="NVIDIA H200", driver="", torch="", triton="", kernel_revision="2")
    )
    CostDatabase([with_name]).save(measured)
    assert CostsPredict(database=measured, gpu="B200", out=out).execute() == 0
    assert CostDatabase.load(out).rows[0].kind is Kind.PREDICTED
    with pytest.raises(ConfigError, match="choose from a100"):
        CostsPredict(database=measured, gpu="tpu", out=out).execute()
    with pytest.raises(ConfigError, match="measured on an H200"):
        CostsPredict(database=out, gpu="a100", out=tmp_path / "c.costs.json").execute()
    with pytest.raises(ConfigError, match="would be lost"):
        CostsPredict(database=measured, gpu="a100", out=measured).execute()


def test_a_gh200_is_no_h200(tmp_path):
    measured = tmp_path / "a.costs.json"
    CostDatabase([row(device=replace(row().device, gpu="NVIDIA GH200 480GB"))]).save(measured)
    with pytest.raises(ConfigError, match="GH200 480GB: give one measured on an H200"):
        CostsPredict(database=measured, gpu="a100", out=tmp_path / "b.costs.json").execute()


def test_a_later_occasion_without_energy_does_not_take_the_energy_away():
    latency_only = row(occasion="b", energy_mj=None, power_w=None)
    (carried,) = carry_over([row(occasion="a"), latency_only], "a100").rows
    assert carried.energy_mj is not None
