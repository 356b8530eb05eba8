"""Logs of power as people have them, and their join with kernels by wall clock."""

import numpy as np
import pandas as pd
import pytest
from nsys_file import NsysFile

from thermoe.errors import DataError
from thermoe.profiling.parsing import parse_profiler_output
from thermoe.profiling.parsing.devices import Device, normal_bus, normal_uuid
from thermoe.profiling.parsing.power_series import read_power_series
from thermoe.types import Kind

START_NS = 1_689_329_567_000_000_000


def one(path, text):
    path.write_text(text)
    (series,) = read_power_series(path)
    return series


def test_nvidia_smi_tables_give_instant_power_and_utc_stamps(tmp_path):
    series = one(
        tmp_path / "smi.csv",
        "timestamp, utilization.gpu [%], power.draw [W], power.draw.instant [W]\n"
        "2023/07/14 10:12:47.500, 0, 50, 60.5\n"
        "2023/07/14 10:12:47.000, 0, 51, [N/A]\n"
        "2023/07/14 10:12:48.000, 0, 52, 62\n",
    )
    assert series.power_w.tolist() == [60.5, 62.0]
    assert series.time_ns.tolist() == [START_NS + 500_000_000, START_NS + 1_000_000_000]
    assert series.kind is Kind.MEASURED


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("wall_time_s,power_w", ["1689329567.5,60", "1689329568.5,62"]),
        ("timestamp;power [mW]", ["1689329567500;60000", "1689329568500;62000"]),
        ("timestamp_ns,power_mw", ["1689329567500000000,60000", "1689329568500000000,62000"]),
        ("time\tpower", ["2023-07-14T12:12:47.5+02:00\t60.0 W", "2023-07-14T12:12:48.5+02:00\t62.0 W"]),
        ("timestamp,power.draw", ["1689329567500000,60", "1689329568500000,62"]),
    ],
)
def test_units_of_time_and_power_are_told_apart(tmp_path, header, rows):
    series = one(tmp_path / "log.csv", "\n".join([header, *rows]))
    assert series.time_ns.tolist() == [START_NS + 500_000_000, START_NS + 1_500_000_000]
    assert series.power_w.tolist() == pytest.approx([60.0, 62.0])


def test_nanoseconds_are_kept_exactly_and_shifted(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("timestamp_ns,power_w\n1689329567500000001,1\n1689329567500000002,2\n")
    (series,) = read_power_series(path, offset_s=-7200.0)
    assert series.time_ns.tolist() == [1689329567500000001 - 7200 * 10**9, 1689329567500000002 - 7200 * 10**9]


def test_several_gpus_in_one_log_are_separate_series(tmp_path):
    path = tmp_path / "log.csv"
    lines = ["timestamp,index,uuid,pci.bus_id,power.draw.instant [W]"]
    for second in range(3):
        lines += [
            f"{1689329567 + second},{i},GPU-{i:08d}-0000-0000-0000-000000000001,0000000{i}:3B:00.0,{100 * i}"
            for i in (0, 1)
        ]
    path.write_text("\n".join(lines))
    first, second = read_power_series(path)
    assert (first.device.index, second.device.index) == (0, 1)
    assert second.device.uuid == "00000001000000000000000000000001"
    assert second.device.bus == "1:3b:0"
    assert second.power_w.tolist() == [100.0] * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("timestamp,temp\n1689329567,1\n1689329568,2\n", "no column of power"),
        ("when,power_w\n1689329567,1\n1689329568,2\n", "no column of time"),
        ("time_s,power_w\n12.5,100\n13.5,100\n", "wall-clock time after 2000"),
        ("timestamp,power_w\n1689329567,1\n1689329567,2\n", "two readings at different times"),
        ("wall_time_s,power_w,kind\n1689329567,1,measured\n1689329568,2,simulated\n", "never mixed"),
        ("timestamp,power_w\n", "no rows"),
        ("", "empty"),
    ],
)
def test_logs_that_cannot_be_joined_say_why_in_one_line(tmp_path, text, said):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        read_power_series(path)
    assert "\n" not in str(caught.value)


def trace(tmp_path):
    file = NsysFile(tmp_path / "t.sqlite")
    file.session(START_NS)
    for i in range(20):
        file.kernel("gemm", i * 10**8, i * 10**8 + 60_000_000)
        file.kernel("softmax", i * 10**8 + 30_000_000, i * 10**8 + 80_000_000, streamId=9)
    return file.save()


def run_folder(tmp_path, kind="measured", first_s=-1.0, last_s=4.0):
    at = np.arange(first_s, last_s, 0.1)
    power_w = 300.0 + 100.0 * np.sin(3 * at)
    folder = tmp_path / "run"
    folder.mkdir()
    counter_j = 1000.0 + np.concatenate([[0.0], np.cumsum(0.05 * (power_w[1:] + power_w[:-1]))])
    frame = pd.DataFrame({"time_s": at, "wall_time_s": START_NS / 1e9 + at, "power_w": power_w, "energy_j": counter_j})
    frame.assign(source="nvml:0", kind=kind).to_parquet(folder / "telemetry.parquet")
    return folder, at, power_w


def test_energies_of_a_run_folder_and_idle_add_up_to_the_window(tmp_path):
    folder, at, power_w = run_folder(tmp_path)
    table = parse_profiler_output(trace(tmp_path), folder)
    grid_s = np.linspace(0.0, 1.98, 1_000_001)
    truth_j = np.trapezoid(np.interp(grid_s, at, power_w), grid_s)
    (window,) = table.attrs["windows"]
    assert window["window_j"] == pytest.approx(truth_j, rel=1e-6)
    assert table["energy_j"].sum() + window["idle_j"] == pytest.approx(window["window_j"], rel=1e-12)
    assert window["busy_ns"] == 20 * 80_000_000
    assert window["counter_j"] == pytest.approx(truth_j, rel=1e-2)
    assert (table["energy_kind"] == "measured").all()
    assert (table["power_source"] == "log:telemetry.parquet").all()
    assert (table["power_w_peak"] >= table["power_w_mean"] - 1e-9).all()


def test_simulated_power_never_passes_for_measured(tmp_path):
    folder, _, _ = run_folder(tmp_path, kind="simulated")
    table = parse_profiler_output(trace(tmp_path), folder)
    assert (table["energy_kind"] == "simulated").all()
    assert (table["kind"] == "measured").all()


def test_kernels_that_the_log_does_not_cover_stay_null_and_are_counted(tmp_path):
    folder, _, _ = run_folder(tmp_path, last_s=1.001)
    table = parse_profiler_output(trace(tmp_path), folder)
    covered = table["end_ns"] <= 10**9
    assert (table["energy_j"].notna() == covered).all()
    assert table.loc[~covered, ["power_w_mean", "power_w_peak", "power_source", "energy_kind"]].isna().all(axis=None)
    assert any("20 of 40 kernels" in note for note in table.attrs["notes"])
    (window,) = table.attrs["windows"]
    assert table["energy_j"].sum() + window["idle_j"] + window["lost_j"] == pytest.approx(window["window_j"])


def test_a_log_of_another_day_is_refused(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("timestamp,power_w\n1689000000,1\n1689000001,2\n")
    with pytest.raises(DataError, match=r"covers none of the kernels.*2023-07-10.*2023-07-14.*--telemetry-offset-s"):
        parse_profiler_output(trace(tmp_path), path)


def test_a_table_of_ncu_beside_a_log_is_read_without_energy(tmp_path):
    path, log = tmp_path / "n.csv", tmp_path / "log.csv"
    path.write_text('"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n"0","gemm","Duration","us","12"\n')
    log.write_text("timestamp,power_w\n1689000000,1\n1689000001,2\n")
    table = parse_profiler_output(path, log)
    assert table["energy_j"].isna().all()
    assert table.attrs["notes"] == ["n.csv: its kernels have no place in time, so no energy"]


def test_the_offset_brings_local_stamps_to_utc(tmp_path):
    path = tmp_path / "log.csv"
    rows = [f"2023/07/14 12:12:{second:02d}.000, 200" for second in range(45, 55)]
    path.write_text("\n".join(["timestamp, power.draw [W]", *rows]))
    with pytest.raises(DataError):
        parse_profiler_output(trace(tmp_path), path)
    table = parse_profiler_output(trace_again(tmp_path), path, telemetry_offset_s=-7200.0)
    assert table["energy_j"].sum() == pytest.approx(200.0 * 20 * 0.08)


def trace_again(tmp_path):
    folder = tmp_path / "again"
    folder.mkdir()
    return trace(folder)


def test_names_of_devices_are_compared_in_one_form():
    assert normal_uuid("GPU-DA169147-ab12-6528-f15a-7efd8bb7efbe") == normal_uuid("da169147ab126528f15a7efd8bb7efbe")
    assert normal_bus("00000000:3B:00.0") == normal_bus("0000:3b:00") == normal_bus("3b:0")
    assert [normal_uuid("MIG-1"), normal_bus("nowhere"), normal_uuid(None), normal_uuid("0" * 32)] == [None] * 4
    a, b = Device(uuid="a" * 32), Device(uuid="b" * 32)
    assert a.contradicts(b)
    assert not a.contradicts(Device(index=3))
    assert a.is_surely(Device(uuid="a" * 32, bus="0:1:0"))
    assert not Device().is_surely(Device())


def test_a_counter_that_moves_in_steps_is_read_between_its_steps(tmp_path):
    path = tmp_path / "log.csv"
    rows = [f"{1689329567 + i * 0.05:.2f},100,{1000 + 100 * (i // 10) * 0.5}" for i in range(100)]
    path.write_text("\n".join(["wall_time_s,power_w,energy_j", *rows]))
    (series,) = read_power_series(path)
    assert series.counter_j(START_NS + 750_000_000, START_NS + 3_000_000_000) == pytest.approx(225.0, rel=1e-4)
    assert series.counter_j(START_NS, START_NS + 3_000_000_000) is None
