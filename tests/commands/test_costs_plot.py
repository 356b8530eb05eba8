import pytest

from thermoe.commands.costs_plot import CostsPlot, choose_rows, draw_costs, measured_or_predicted
from thermoe.cost.database import CostDatabase
from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.errors import ConfigError, DataError
from thermoe.types import Kind

KEY = DeviceKey(gpu="Test GPU", driver="1", torch="2", triton="3", kernel_revision="2")


def row(experts, **changes) -> CostRow:
    latency_us = 3.0 * experts
    values = {
        "device": KEY,
        "op": "expert_mlp",
        "impl": "thermoe",
        "dtype": "bfloat16",
        "hidden_size": 2048,
        "inter_size": 768,
        "num_experts": 128,
        "top_k": 8,
        "tokens": 16,
        "routed_rows": 128,
        "active_experts": experts,
        "skew": 1.0,
        "latency_us": latency_us,
        "latency_low_us": latency_us,
        "latency_high_us": latency_us,
        "repeats": 1,
        "spread_pct": 0.0,
        "input_distribution": "normal",
        "kind": Kind.MEASURED,
        "bytes_moved": 9e6 * experts,
        "flops": 1e9,
        "energy_mj": 2.0 * experts,
        "power_w": 600.0,
    }
    return CostRow(**(values | changes))


def points(ax):
    return {c.get_label(): sorted(map(tuple, c.get_offsets().tolist())) for c in ax.collections}


def test_panels_hold_the_rows_by_series():
    rows = [row(8), row(16), row(32, dtype="int4")]
    figure = draw_costs(rows, "dtype")
    latency, energy, bandwidth, power = figure.axes[:4]
    assert points(latency) == {"bfloat16": [(72.0, 24.0), (144.0, 48.0)], "int4": [(288.0, 96.0)]}
    assert points(energy)["int4"] == [(288.0, 64.0)]
    assert points(bandwidth)["int4"][0][1] == pytest.approx(3.0)
    assert points(power)["int4"][0][1] == 600.0
    assert "measured" in figure.get_suptitle()


def test_kinds_never_share_a_series():
    figure = draw_costs([row(8), row(16, kind=Kind.PREDICTED)], "dtype")
    assert set(points(figure.axes[0])) == {"bfloat16 (measured)", "bfloat16 (predicted)"}


def test_many_series_end_in_others():
    figure = draw_costs([row(8, hidden_size=2048 + 32 * i) for i in range(20)], "shape")
    assert len(points(figure.axes[0])) == 10
    assert len(points(figure.axes[0])["others (measured)"]) == 11


def test_rows_without_energy_or_bytes_are_left_out_of_what_needs_them():
    rows = [row(8, energy_mj=None, power_w=None), row(16)]
    assert len(points(draw_costs(rows, "op").axes[1])["expert_mlp"]) == 1
    with pytest.raises(DataError, match="nothing to draw"):
        choose_rows([row(8, bytes_moved=None)], ())
    with pytest.raises(ConfigError, match="choose from expert_mlp"):
        choose_rows([row(8)], ("sing",))
    assert [r.op for r in choose_rows([row(8), row(8, op="gemm")], ())] == ["expert_mlp"]


@pytest.mark.parametrize("name", ["x.svg", "x.pdf", "x.png"])
def test_command_writes_a_figure(tmp_path, name):
    CostDatabase([row(8)]).save(tmp_path / "a.costs.json")
    assert CostsPlot(databases=(tmp_path / "a.costs.json",), out=tmp_path / "deep" / name).execute() == 0
    assert (tmp_path / "deep" / name).stat().st_size > 1000


@pytest.mark.parametrize("wrong", [{"out": "x.txt"}, {"by": "colour"}, {"databases": ()}])
def test_wrong_settings_are_refused(tmp_path, wrong):
    from pathlib import Path

    settings = {"databases": (Path("a"),), "out": Path("x.svg")} | wrong
    settings["out"] = Path(settings["out"])
    with pytest.raises(ConfigError):
        CostsPlot(**settings)


def test_a_file_counts_once_and_smoke_runs_not_at_all(tmp_path):
    rows = [row(8), row(9, occasion="smoke 2026-01-01")]
    path, link = tmp_path / "a.costs.json", tmp_path / "b.costs.json"
    CostDatabase(rows).save(path)
    link.symlink_to(path)
    assert [r.active_experts for r in measured_or_predicted([path, link, path])] == [8]
