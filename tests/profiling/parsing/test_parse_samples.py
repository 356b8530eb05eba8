"""Real exports, where they lie beside the checkout: totals against SQL, and one line where there is nothing."""

import os
import sqlite3
from pathlib import Path

import pandas as pd
import pytest

from thermoe.profiling.parsing import NothingToParseError, parse_profiler_output
from thermoe.profiling.parsing.power_series import read_power_series

SAMPLES = Path(os.environ.get("THERMOE_SHARED", Path(__file__).resolve().parents[3] / ".." / "shared")) / "samples"
pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason="no folder of real profiles beside the checkout")


def sql(name, query):
    connection = sqlite3.connect(f"file:{SAMPLES / 'nsys' / name}?mode=ro&immutable=1", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


TOTALS = (
    "SELECT s.value, k.deviceId, count(*), sum(k.end - k.start) FROM CUPTI_ACTIVITY_KIND_KERNEL k"
    " LEFT JOIN StringIds s ON s.id = k.{column} GROUP BY 1, 2"
)
WITH_KERNELS = ["h100_2gpu_training_2026.2.sqlite", "h100_2gpu_two_ranks_2026.2.sqlite", "t4_vector_2022.4.sqlite"]


@pytest.mark.parametrize("name", WITH_KERNELS)
@pytest.mark.parametrize(("theirs", "ours"), [("shortName", "kernel_name"), ("demangledName", "kernel_signature")])
def test_totals_per_kernel_agree_with_sql_to_the_nanosecond(name, theirs, ours):
    table = parse_profiler_output(SAMPLES / "nsys" / name)
    sums = table.groupby([ours, "device_id"])["duration_ns"].agg(["size", "sum"])
    assert {(*key, *row) for key, row in zip(sums.index, sums.to_numpy().tolist(), strict=True)} == set(
        map(tuple, sql(name, TOTALS.format(column=theirs)))
    )


@pytest.mark.parametrize("name", WITH_KERNELS[:2])
def test_ranges_agree_with_a_join_in_sql_and_ranks_do_not_inflate(name):
    table = parse_profiler_output(SAMPLES / "nsys" / name)
    query = """SELECT k.rowid, k.start, k.deviceId, k.streamId,
        (SELECT coalesce(n.text, s.value) FROM NVTX_EVENTS n LEFT JOIN StringIds s ON s.id = n.textId
         WHERE n.globalTid = r.globalTid AND n.start <= r.start AND n.end >= r.start AND n.eventType IN (59, 60)
         ORDER BY n.start DESC, n.end ASC LIMIT 1)
        FROM CUPTI_ACTIVITY_KIND_KERNEL k LEFT JOIN CUPTI_ACTIVITY_KIND_RUNTIME r
        ON r.correlationId = k.correlationId AND (r.globalTid & ~0xFFFFFF) = k.globalPid
        WHERE k.rowid % 37 = 0"""
    wanted = {(start, device, stream): text for _, start, device, stream, text in sql(name, query)}
    found = table.set_index(["start_ns", "device_id", "stream_id"])["range_name"]
    got = {key: None if pd.isna(found.loc[key]) else found.loc[key] for key in wanted}
    assert got == wanted
    assert len(table) == sql(name, "SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL")[0][0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a5000_no_kernels_2025.3.sqlite", "no work of the GPU was recorded, 2 calls of the CUDA API"),
        ("rtx4060_no_kernels_2025.5.sqlite", "of the GPU it saw only 1 memset, 23 calls of the CUDA API"),
    ],
)
def test_files_without_kernels_say_why_in_one_line(name, said):
    with pytest.raises(NothingToParseError, match=said) as caught:
        parse_profiler_output(SAMPLES / "nsys" / name)
    assert "\n" not in str(caught.value)


def test_the_ncu_sample_gives_its_kernel():
    (row,) = parse_profiler_output(SAMPLES / "ncu" / "t4_copy_details.csv").to_dict("records")
    assert row["kernel_name"] == "copy_blocked"
    assert (row["duration_ns"], row["grid_size"], row["block_size"]) == (21_058_944, 1024, 256)
    assert (row["dram_throughput_pct"], row["warps_active_pct"], row["waves_per_sm"]) == (61.84, 96.26, 6.4)
    assert row["sm_clock_mhz"] == pytest.approx(584.99887744)
    assert row["instructions"] == 16_105_472


def test_the_power_sample_is_read_as_instant_power_of_one_gpu():
    (series,) = read_power_series(SAMPLES / "power" / "5050_A100_gpudata.csv")
    assert series.power_w.min() > 40.0
    assert series.time_ns[0] == 1_689_329_566_483_000_000
    assert (series.time_ns[-1] - series.time_ns[0]) / 1e9 == pytest.approx(12.678)


def test_the_schema_as_text_can_be_built_and_read(tmp_path):
    """Synthetic: every table of the documented schema, one kernel in it."""
    schema = SAMPLES.parent / "nsys_schema.sql"
    path = tmp_path / "schema.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(schema.read_text(encoding="utf-8"))
    names = [row[1] for row in connection.execute("PRAGMA table_info(CUPTI_ACTIVITY_KIND_KERNEL)")]
    values = dict.fromkeys(names, 1) | {"start": 5, "end": 25, "shortName": 1, "deviceId": 0}
    connection.execute("INSERT INTO StringIds VALUES (1, 'gemm')")
    marks = ", ".join("?" * len(names))
    connection.execute(f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES ({marks})", list(values.values()))
    connection.commit()
    connection.close()
    assert parse_profiler_output(path)[["kernel_name", "duration_ns"]].to_numpy().tolist() == [["gemm", 20]]
