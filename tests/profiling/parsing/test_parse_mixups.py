"""What people hand over by mistake: one file twice, ranks of one name, logs of two clocks, a result over its input."""

import json

import pytest
from nsys_file import NsysFile

from thermoe.errors import ConfigError, DataError
from thermoe.profiling.parsing import parse_profiler_output, sum_by_operation
from thermoe.profiling.parsing.command import Parse
from thermoe.profiling.parsing.parse import write_table
from thermoe.profiling.parsing.power_series import read_power_series

START_NS = 1_689_329_567_000_000_000
START_S = START_NS // 10**9


def trace(path, shift_us=0.0, name="gemm"):
    path.parent.mkdir(exist_ok=True)
    events = []
    for i in range(4):
        at = shift_us + i * 200_000.0
        launched = {"ph": "X", "pid": 9, "tid": 9, "ts": at, "dur": 100.0}
        events.append(launched | {"cat": "user_annotation", "name": "op:expert_mlp"})
        events.append(launched | {"cat": "cuda_runtime", "name": "launch", "args": {"correlation": i}})
        where = {"device": 0, "stream": 7, "correlation": i}
        kernel = {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": at + 50.0, "dur": 1000.0}
        events.append(kernel | {"args": where})
    path.write_text(json.dumps({"schemaVersion": 1, "baseTimeNanoseconds": START_NS, "traceEvents": events}))
    return path


def log(path, rows=None, header="wall_time_s,power_w"):
    rows = [f"{START_S - 1 + i * 0.1:.1f},{300 + i % 7}" for i in range(40)] if rows is None else rows
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_file_named_twice_counts_once(tmp_path):
    one, power = trace(tmp_path / "t.json"), log(tmp_path / "p.csv")
    (tmp_path / "link.json").symlink_to(one)
    alone, twice = (parse_profiler_output(files, power) for files in ([one], [one, tmp_path / "link.json", one]))
    assert len(twice) == len(alone) == 4
    assert twice["energy_j"].sum() == alone["energy_j"].sum()
    assert sum("read once" in note for note in twice.attrs["notes"]) == 2


def test_ranks_in_files_of_one_name_stay_apart(tmp_path):
    ranks = [trace(tmp_path / "rank0" / "t.json"), trace(tmp_path / "rank1" / "t.json", shift_us=5e6)]
    table = parse_profiler_output(ranks)
    assert len(sum_by_operation(table)) == 8
    assert set(table["source_file"]) == {str(rank) for rank in ranks}


def test_files_that_shared_a_board_say_so(tmp_path):
    first, power = trace(tmp_path / "a.json"), log(tmp_path / "p.csv")
    beside, later = trace(tmp_path / "b.json", shift_us=100.0), trace(tmp_path / "c.json", shift_us=1e6)
    together = parse_profiler_output([first, beside], power).attrs["notes"]
    assert any("do not add them up" in note for note in together)
    assert not any("add them up" in note for note in parse_profiler_output([first, later], power).attrs["notes"])


def test_the_table_does_not_take_the_place_of_what_it_is_made_of(tmp_path):
    one, power = trace(tmp_path / "t.json"), log(tmp_path / "p.csv")
    with pytest.raises(ConfigError, match="would be lost"):
        Parse(files=(one,), out=power, telemetry=(power,)).execute()
    assert power.read_text().startswith("wall_time_s")


def test_a_write_that_fails_leaves_the_old_table(tmp_path, monkeypatch):
    table, out = parse_profiler_output(trace(tmp_path / "t.json")), tmp_path / "o.csv"
    out.write_text("old")

    def full(path, index):
        path.write_text("half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table, "to_csv", full)
    with pytest.raises(DataError, match="No space left"):
        write_table(table, out)
    assert out.read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"o.csv", "t.json"}


def test_half_a_surrogate_pair_in_a_name_is_written_as_text(tmp_path):
    table = parse_profiler_output(trace(tmp_path / "t.json", name="gemm\ud800"))
    write_table(table, tmp_path / "o.parquet")
    assert set(table["kernel_name"]) == {"gemm\\ud800"}


@pytest.mark.parametrize("offset_s", [float("nan"), float("inf"), 1e300, -1e12])
def test_an_offset_beyond_all_reason_is_refused(tmp_path, offset_s):
    with pytest.raises(ConfigError, match="offset of"):
        read_power_series(log(tmp_path / "p.csv"), offset_s)


def test_negative_powers_are_no_readings(tmp_path):
    rows = [f"{START_S + i},{power}" for i, power in enumerate((100, -50, 120, float("nan"), 140))]
    (series,) = read_power_series(log(tmp_path / "p.csv", rows))
    assert series.power_w.tolist() == [100.0, 120.0, 140.0]


def test_a_column_that_a_board_does_not_fill_gives_way_to_one_that_it_does(tmp_path):
    rows = [f"{START_S + i},[N/A],{100 + i}" for i in range(3)]
    (series,) = read_power_series(log(tmp_path / "p.csv", rows, "timestamp,power.draw.instant [W],power.draw [W]"))
    assert series.power_w.tolist() == [100.0, 101.0, 102.0]


def test_a_clock_that_was_set_back_is_refused_and_parts_in_any_order_are_not(tmp_path):
    early, late = ([f"{START_S + s + i * 0.1:.1f},{100 + s}" for i in range(50)] for s in (0, 10))
    (series,) = read_power_series(log(tmp_path / "p.csv", [*late, *early]))
    assert series.time_ns.size == 100
    assert read_power_series(log(tmp_path / "p.csv", [*early, *early]))[0].time_ns.size == 50
    back = [f"{START_S + 3 + i * 0.1:.2f}5,{500}" for i in range(50)]
    with pytest.raises(DataError, match=r"goes back, so that 1.\d s"):
        read_power_series(log(tmp_path / "p.csv", [*early, *back]))


def test_rows_of_two_gpus_that_name_neither_are_refused(tmp_path):
    rows = [f"{START_S + i},{power}" for i in range(10) for power in (100 + i, 700 - i)]
    with pytest.raises(DataError, match="no row names its GPU"):
        read_power_series(log(tmp_path / "p.csv", rows))


def test_a_cell_without_end_is_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be read as CSV") as err:
        read_power_series(log(tmp_path / "p.csv", ["x" * 200_000]))
    assert "\n" not in str(err.value)


def test_energies_of_overlapping_kernels_idle_and_lost_add_up_where_the_log_has_a_hole(tmp_path):
    file = NsysFile(tmp_path / "t.sqlite")
    file.session(START_NS)
    for i in range(20):
        file.kernel("gemm", i * 10**8, i * 10**8 + 60_000_000)
        file.kernel("softmax", i * 10**8 + 30_000_000, i * 10**8 + 80_000_000, streamId=9)
    rows = [f"{START_S - 0.98 + i * 0.1:.2f},{300 + i % 7}" for i in range(40) if not 15 < i < 28]
    table = parse_profiler_output(file.save(), log(tmp_path / "p.csv", rows))
    (window,) = table.attrs["windows"]
    parts_j = table["energy_j"].sum() + window["idle_j"] + window["lost_j"]
    assert parts_j == pytest.approx(window["window_j"], rel=1e-12)
    assert window["lost_j"] > 0
