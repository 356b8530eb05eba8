import json
from dataclasses import replace

import pytest
from cost_rows import KEY, make_row
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thermoe.cost.database import CostDatabase, Failure, describe
from thermoe.cost.database_command import CostsMerge, CostsShow
from thermoe.cost.diff_command import CostsDiff
from thermoe.errors import ConfigError, DataError
from thermoe.types import Kind

FULL = {"energy_mj": 75.2, "energy_integrated_mj": 74.0, "power_w": 592.0, "temp_c": 41.5, "throttled": False}


def two_rows() -> CostDatabase:
    other_gpu = replace(KEY, gpu="Other GPU")
    return CostDatabase(
        [make_row(127.0, **FULL), make_row(99.0, device=other_gpu)], [Failure("a case", "out of memory")]
    )


def test_file_reads_back_as_it_was_written(tmp_path):
    path = tmp_path / "deep" / "x.costs.json"
    two_rows().save(path)
    assert CostDatabase.load(path) == two_rows()
    assert [p.name for p in path.parent.iterdir()] == ["x.costs.json"]


def test_file_has_the_fields_other_programs_read(tmp_path):
    path = tmp_path / "x.costs.json"
    two_rows().save(path)
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert content["devices"][0] == {
        "gpu": "Test GPU",
        "driver": "1.2",
        "torch": "2.11",
        "triton": "3.6",
        "kernel_revision": "1",
    }
    row = content["rows"][0]
    assert row["shape"] == {"D": 2048, "I": 768, "E": 128, "k": 8}
    assert (row["op"], row["kind"], row["latency_us"], row["energy_mj"]) == ("expert_mlp", "measured", 127.0, 75.2)
    assert content["rows"][1]["energy_mj"] is None


def test_adding_a_case_again_replaces_it():
    database = two_rows()
    database.add(make_row(130.0))
    assert [r.latency_us for r in database.rows] == [99.0, 130.0]


def test_a_row_forgets_the_failure_of_its_own_case_only():
    row = make_row(130.0)
    database = CostDatabase([], [Failure(describe(row), "out of memory"), Failure("another case", "wrong result")])
    database.add(row)
    assert [f.case for f in database.failures] == ["another case"]
    database.forget_failures()
    assert database.failures == []
    assert database.rows == [row]


def test_select_by_row_and_by_device():
    assert len(two_rows().select(gpu="Other GPU")) == 1
    assert len(two_rows().select(op="expert_mlp", active_experts=32)) == 2
    with pytest.raises(DataError, match="no colour"):
        two_rows().select(colour="red")


def test_merge_joins_and_refuses_a_conflict():
    here, there = CostDatabase([make_row(127.0)]), CostDatabase([make_row(127.0), make_row(50.0, active_experts=8)])
    assert len(here.merge(there)) == 2
    with pytest.raises(DataError, match=r"127 and 128 us") as err:
        here.merge(CostDatabase([make_row(128.0)]))
    assert "\n" not in str(err.value)


def test_diff_is_relative_to_the_first_and_ignores_the_device():
    newer = replace(KEY, torch="2.12")
    old = CostDatabase([make_row(100.0, energy_mj=50.0), make_row(1.0, active_experts=8)])
    new = CostDatabase([make_row(110.0, energy_mj=45.0, device=newer)])
    (change,) = old.diff(new)
    assert change["latency_change_pct"] == pytest.approx(10.0)
    assert change["energy_change_pct"] == pytest.approx(-10.0)


def test_frame_has_device_and_figures():
    frame = two_rows().to_frame()
    assert list(frame["gpu"]) == ["Test GPU", "Other GPU"]
    assert frame["latency_us"].tolist() == [127.0, 99.0]
    assert frame["energy_mj"].isna().tolist() == [False, True]
    assert CostDatabase().to_frame().empty


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latency_us", float("nan")),
        ("latency_us", -1.0),
        ("latency_us", True),
        ("latency_low_us", 60.0),
        ("energy_mj", 0.0),
        ("energy_mj", float("inf")),
        ("active_experts", 129),
        ("active_experts", 0),
        ("tokens", 1.5),
        ("op", ""),
        ("throttled", 1),
        ("skew", None),
    ],
)
def test_a_row_that_cannot_be_right_is_refused(field, value):
    with pytest.raises(DataError) as err:
        make_row(**{field: value})
    assert "\n" not in str(err.value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '{"format": "thermoe.costs"}', '{"format": "thermoe.costs", "schema": 2}', "\x00\xff",
     '{"format": "thermoe.costs", "schema": 1, "devices": 3, "rows": [], "failures": []}',
     '{"format": "thermoe.costs", "schema": 1, "devices": [], "rows": [{"device": 0}], "failures": []}',
     '{"format": "thermoe.costs", "schema": 1, "devices": [{}], "rows": [], "failures": []}', "[" * 100000],
)  # fmt: skip
def test_foreign_files_are_a_one_line_error(tmp_path, text):
    path = tmp_path / "x.costs.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError) as err:
        CostDatabase.load(path)
    assert "\n" not in str(err.value)
    assert str(path) in str(err.value)


def test_missing_file_and_folder_without_room_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        CostDatabase.load(tmp_path / "none.costs.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        two_rows().save(tmp_path / "file" / "x.costs.json")


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_loads_whole_or_is_a_data_error(tmp_path, data):
    path = tmp_path / "x.costs.json"
    two_rows().save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    message = ""
    try:
        assert len(CostDatabase.load(path)) == 2
    except DataError as err:
        message = str(err)
    assert "\n" not in message


def test_a_case_held_twice_is_refused(tmp_path):
    path = tmp_path / "x.costs.json"
    CostDatabase([make_row(1.0), make_row(2.0)]).save(path)
    with pytest.raises(DataError, match="same case twice"):
        CostDatabase.load(path)


def test_commands_show_merge_and_diff(tmp_path, capsys):
    old, new, joined = tmp_path / "a.costs.json", tmp_path / "b.costs.json", tmp_path / "c.costs.json"
    CostDatabase([make_row(100.0)], [Failure("big case", "out of\nmemory")]).save(old)
    CostDatabase([make_row(120.0, device=replace(KEY, torch="2.12"))]).save(new)
    assert CostsShow(database=old).execute() == 0
    shown = capsys.readouterr().out
    assert "100.0 us" in shown
    assert "big case: failed, out of memory" in shown
    assert CostsDiff(old=old, new=new).execute() == 1
    assert "latency +20.0 %" in capsys.readouterr().out
    assert CostsDiff(old=new, new=old).execute() == 0
    assert CostsMerge(databases=(old, new), out=joined).execute() == 0
    assert len(CostDatabase.load(joined)) == 2


def test_occasions_of_one_case_are_joined_and_a_conflict_can_be_decided():
    first, second = make_row(127.0, occasion="a"), make_row(130.0, occasion="b")
    assert len(CostDatabase([first]).merge(CostDatabase([second]))) == 2
    here, there = CostDatabase([make_row(127.0)]), CostDatabase([make_row(128.0)])
    assert here.merge(there, prefer="first").rows[0].latency_us == 127.0
    assert here.merge(there, prefer="last").rows[0].latency_us == 128.0


def test_a_failure_that_the_other_database_measured_is_forgotten_in_a_merge():
    row = make_row(130.0)
    failed = CostDatabase([], [Failure(describe(row), "out of memory"), Failure("another", "wrong")])
    assert [f.case for f in failed.merge(CostDatabase([row])).failures] == ["another"]


def test_diff_takes_the_median_of_occasions():
    old = CostDatabase([make_row(100.0, occasion=o) for o in "abc"])
    new = CostDatabase([make_row(latency, occasion=o) for latency, o in ((90.0, "d"), (110.0, "e"), (500.0, "f"))])
    (change,) = old.diff(new)
    assert change["latency_change_pct"] == pytest.approx(10.0)


def test_load_and_context_tell_cases_apart_and_old_files_lack_them(tmp_path):
    rows = [make_row(1.0), make_row(2.0, load="zipf"), make_row(3.0, context=512, group_size=64, windows=2)]
    path = tmp_path / "x.costs.json"
    CostDatabase(rows).save(path)
    assert CostDatabase.load(path).rows == rows
    first, second, third = json.loads(path.read_text())["rows"]
    assert "load" not in first
    assert (second["load"], third["context"]) == ("zipf", 512)


def test_show_sums_up_a_long_database_and_selects(tmp_path, capsys):
    path = tmp_path / "x.costs.json"
    rows = [make_row(100.0 + i, occasion=str(i)) for i in range(60)]
    CostDatabase([*rows, make_row(7.0, op="gemm", **FULL)]).save(path)
    assert CostsShow(database=path).execute() == 0
    shown = capsys.readouterr().out
    assert "expert_mlp/grouped_mm (measured): 60 rows, 0 with energy" in shown
    assert "--rows prints them" in shown
    assert CostsShow(database=path, ops=("gemm,expert_mlp",), energy=True).execute() == 0
    shown = capsys.readouterr().out
    assert "7.0 us, 75.20 mJ at 592 W" in shown
    assert "expert_mlp" not in shown
    with pytest.raises(ConfigError, match="no row of operation sing"):
        CostsShow(database=path, ops=("sing",)).execute()


def test_diff_shows_what_changed_only(tmp_path, capsys):
    old, new = tmp_path / "a.costs.json", tmp_path / "b.costs.json"
    CostDatabase([make_row(100.0), make_row(50.0, active_experts=8)]).save(old)
    CostDatabase([make_row(101.0), make_row(40.0, active_experts=8)]).save(new)
    assert CostsDiff(old=old, new=new, changed=True).execute() == 0
    shown = capsys.readouterr().out
    assert "latency -20.0 %" in shown
    assert "+1.0 %" not in shown
    assert "2 cases, median latency -9.5 %" in shown


def test_no_difference_is_between_a_mixture_of_kinds_or_of_gpus():
    other = replace(KEY, gpu="Other GPU")
    old = CostDatabase([make_row(100.0)])
    carried = make_row(10.0, device=other, kind=Kind.PREDICTED)
    (change,) = old.diff(CostDatabase([make_row(110.0), carried]))
    assert change["latency_change_pct"] == pytest.approx(10.0)
    assert (change["gpus"], change["kinds"]) == (["Test GPU"] * 2, ["measured"] * 2)
    imported = make_row(50.0, kind=Kind.PREDICTED, occasion="s")
    (change,) = old.diff(CostDatabase([make_row(110.0), imported]))
    assert change["latency_change_pct"] == pytest.approx(10.0)
    (change,) = old.diff(CostDatabase([carried]))
    assert (change["gpus"], change["kinds"]) == (["Test GPU", "Other GPU"], ["measured", "predicted"])
    third = make_row(10.0, device=replace(KEY, gpu="Third GPU"))
    with pytest.raises(DataError, match="no GPU is in both"):
        old.diff(CostDatabase([carried, third]))


def test_diff_says_what_was_not_measured_and_refuses_a_tolerance_that_is_no_number(tmp_path, capsys):
    old, new = tmp_path / "a.costs.json", tmp_path / "b.costs.json"
    CostDatabase([make_row(100.0)]).save(old)
    CostDatabase([make_row(120.0, kind=Kind.PREDICTED)]).save(new)
    assert CostsDiff(old=old, new=new).execute() == 1
    assert "+20.0 % (measured to predicted)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="tolerance_pct"):
        CostsDiff(old=old, new=new, tolerance_pct=float("nan"))


@pytest.mark.parametrize("figure", [1e-40, 1e40])
def test_figures_whose_products_would_overflow_are_refused(figure):
    with pytest.raises(DataError, match="needs a positive finite number"):
        make_row(50.0, energy_mj=figure)
