"""External power meters: against integrals done by hand, and on a real log where there is one."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from thermoe.errors import ConfigError, DataError
from thermoe.telemetry import PowerLog, align_power_log, read_power_log

SHARED = Path(os.environ.get("THERMOE_SHARED", Path(__file__).resolve().parents[2] / ".." / "shared"))
REAL = SHARED / "samples" / "power"


def test_windows_are_integrated_exactly_between_samples():
    log = PowerLog(np.array([0.0, 1.0, 2.0, 3.0]), np.array([100.0, 300.0, 300.0, 100.0]))

    got = align_power_log(log, [(0.0, 3.0), (0.5, 1.0), (0.25, 0.75), (1.0, 1.0), (2.5, 3.0)])
    assert got == pytest.approx([700.0, 125.0, 100.0, 0.0, 75.0])
    assert align_power_log(log, []) == []


def test_neighbouring_windows_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    log = PowerLog(np.sort(rng.uniform(0, 10, 300)), rng.uniform(50, 500, 300))
    edges = np.sort(rng.uniform(log.wall_time_s[0], log.wall_time_s[-1], 9))
    parts = align_power_log(log, list(pairwise(edges)))
    assert sum(parts) == pytest.approx(align_power_log(log, [(edges[0], edges[-1])])[0])


def test_what_the_log_does_not_cover_is_none():
    log = PowerLog(np.array([0.0, 1.0, 5.0, 6.0]), np.full(4, 10.0))
    assert align_power_log(log, [(-0.1, 0.5), (5.5, 6.1), (0.5, 5.5), (2.0, 3.0)]) == [None] * 4
    assert align_power_log(log, [(0.5, 5.5), (0.2, 0.4)], max_gap_s=4.0) == pytest.approx([50.0, 2.0])
    with pytest.raises(ConfigError, match="start <= end"):
        align_power_log(log, [(2.0, 1.0)])


@pytest.mark.parametrize(
    "stamp",
    [
        "1700000000.5",
        "1700000000500",
        "1700000000500000",
        "1700000000500000000",
        "2023-11-14T22:13:20.5Z",
        "2023-11-14 23:13:20.500+01:00",
        "2023-11-14T22:13:20.500",
        "2023/11/14 22:13:20.500",
    ],
)
def test_stamps_of_many_makes(tmp_path, stamp):
    file = tmp_path / "meter.csv"
    file.write_text(f"when;power\n{stamp};10\n{stamp};20\n1700000009;30\n")
    log = read_power_log(file, time_column="when", power_column="power", time_offset_s=-0.5)
    np.testing.assert_allclose(log.wall_time_s, [1700000000.0, 1700000008.5], rtol=0, atol=1e-6)
    np.testing.assert_allclose(log.power_w, [10.0, 30.0])


def test_units_come_from_header_or_cell(tmp_path):
    file = tmp_path / "meter.csv"
    file.write_text("t\tp [mW]\n1\t2500\n2\t3 W\n3\t0.5kW\n4\t-1e3\n")
    log = read_power_log(file, time_column="t", power_column="p")
    np.testing.assert_allclose(log.power_w, [2.5, 3.0, 500.0, -1.0])


def test_bad_rows_are_left_out_and_counted(tmp_path, caplog):
    file = tmp_path / "meter.csv"
    file.write_text("t,p\n3,30\n1,10\n2,[N/A]\n,7\nnever,7\n4,\n5,50\n6,60\n7,70\n8\n9,90\n")
    log = read_power_log(file, time_column="t", power_column="p")
    np.testing.assert_allclose(log.wall_time_s, [1, 3, 5, 6, 7, 9])
    assert "5 of 11 rows" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [("t,p\n", "no rows"), ("", "empty"), ("t,q\n1,2\n", "no column 'p'"), ("t,p\na,b\nc,d\n1,2\n", "1 of 3")],
)
def test_a_file_that_is_no_power_log_is_refused(tmp_path, content, message):
    (tmp_path / "meter.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_power_log(tmp_path / "meter.csv", time_column="t", power_column="p")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_power_log(tmp_path / "none.csv", time_column="t", power_column="p")


@pytest.mark.skipif(not REAL.is_dir(), reason="the sample of a real power log is not beside the checkout")
def test_a_real_log_in_local_time_aligns_with_the_windows_of_its_load():
    log = read_power_log(
        REAL / "5050_A100_gpudata.csv",
        time_column="timestamp",
        power_column="power.draw.instant",
        time_offset_s=-3600.0,  # the machine wrote British summer time
    )
    stamps_s = np.loadtxt(REAL / "5050_A100_timestamps.csv", skiprows=1) * 1e-6
    whole = (float(stamps_s[0]), float(stamps_s[-1]))
    before = (float(log.wall_time_s[0]), float(log.wall_time_s[0]) + 1.0)

    load_j, idle_j, beyond_j = align_power_log(log, [whole, before, (whole[1], whole[1] + 3600.0)])
    assert len(log.power_w) > 900
    assert 40.0 < idle_j < 80.0
    assert load_j / (whole[1] - whole[0]) > 1.3 * idle_j
    assert beyond_j is None
    inside = (log.wall_time_s >= whole[0]) & (log.wall_time_s <= whole[1])
    assert load_j == pytest.approx(log.power_w[inside].mean() * (whole[1] - whole[0]), rel=0.02)
