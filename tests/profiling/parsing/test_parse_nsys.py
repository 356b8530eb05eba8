"""nsys exports that no real file shows, built by hand (synthetic): schemas, joins, ranges, graphs, metrics, power."""

import sqlite3

import numpy as np
import pytest
from nsys_file import OTHER_PROCESS, PROCESS, SCHEMAS, TABLES, NsysFile

from thermoe.profiling.parsing import NothingToParseError, parse_profiler_output, sum_by_operation

EPOCH_NS = 1_700_000_000_123_456_789


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made.sqlite"


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_schema_version_gives_the_same_table(path, schema):
    file = NsysFile(path, schema)
    file.session(EPOCH_NS)
    file.kernel("gemm", -1_000, 2_000, correlationId=5, streamId=13)
    file.kernel("my_softmax", 9_000, 9_500, correlationId=6, deviceId=1)
    file.launch(5, at=-2_000)
    file.range("op:expert_mlp", -3_000, 0)
    table = parse_profiler_output(file.save())

    first, second = table.to_dict("records")
    assert first["kernel_name"] == "gemm"
    assert first["kernel_signature"] == "void gemm<int>(int)"
    assert (first["start_ns"], first["end_ns"], first["duration_ns"]) == (-1_000, 2_000, 3_000)
    assert first["start_wall_ns"] == EPOCH_NS - 1_000
    assert (first["stream_id"], first["process_id"], first["grid_size"], first["block_size"]) == (13, 1, 4, 2)
    assert (first["op_type"], first["range_name"]) == ("expert_mlp", "op:expert_mlp")
    assert (second["op_type"], second["device_id"]) == ("softmax", 1)
    assert table["range_name"].isna().tolist() == [False, True]
    assert table["energy_j"].isna().all()
    assert (table["kind"] == "measured").all()


def test_two_ranks_with_the_same_correlation_ids_do_not_inflate_each_other(path):
    file = NsysFile(path)
    for rank, process in enumerate((PROCESS, OTHER_PROCESS)):
        for i in range(50):
            file.kernel("gemm", 1000 * i, 1000 * i + 500, correlationId=i, globalPid=process, deviceId=rank)
            file.launch(i, at=1000 * i - 100, process=process)
        file.range(f"rank{rank}", -500, 60_000, process=process)
    table = parse_profiler_output(file.save())

    assert len(table) == 100
    assert (table["range_name"] == "rank" + table["device_id"].astype(str)).all()
    assert table["duration_ns"].sum() == 100 * 500


def test_a_call_seen_twice_does_not_double_its_kernel(path):
    file = NsysFile(path)
    file.kernel("gemm", 0, 10, correlationId=1)
    file.launch(1, at=-10)
    file.launch(1, at=-9)
    file.range("first", -10, -10)
    assert parse_profiler_output(file.save())["range_name"].tolist() == ["first"]


def test_a_kernel_without_its_string_or_launch_stays(path):
    file = NsysFile(path)
    file.kernel("gemm", 0, 10, shortName=999_999, demangledName=888_888)
    file.kernel("gemm", 20, 30, shortName=999_999)
    file.range("r", -10, 50)
    table = parse_profiler_output(file.save())
    assert table["kernel_name"].isna().tolist() == [True, False]
    assert table["kernel_name"][1] == "void gemm<int>(int)"
    assert table["range_name"].isna().all()
    assert "2 of 2 kernels have no launch" in table.attrs["notes"][0]


def test_kernels_belong_to_the_range_of_their_launch_not_of_their_execution(path):
    file = NsysFile(path)
    file.kernel("late", 5_000, 6_000, correlationId=1)
    file.launch(1, at=100)
    file.range("layer", 0, 3_000)
    file.range("dispatch", 50, 150)
    file.range("aten::mm", 90, 110)
    file.range("combine", 4_900, 6_100)
    file.range("op:elsewhere", 0, 3_000, thread=2)
    row = parse_profiler_output(file.save()).iloc[0]
    assert (row["range_name"], row["op_type"]) == ("aten::mm", "dispatch")


def test_registered_texts_open_ranges_marks_and_several_kernels_per_operation(path):
    file = NsysFile(path)
    for i in range(4):
        file.kernel("k", 1000 * i, 1000 * i + 100 + i, correlationId=i)
        file.launch(i, at=1000 * i - 50)
    file.range(None, -100, 1500, textId=file.text("expert_mlp"))
    file.range("expert_mlp", 1600, None)
    file.range("op:not_a_range", 900, 1000, eventType=34)
    table = parse_profiler_output(file.save())
    assert table["op_type"].tolist() == ["expert_mlp"] * 4
    sums = sum_by_operation(table)
    assert sums["num_kernels"].tolist() == [2, 2]
    assert sums["kernel_ns"].tolist() == [201, 205]
    assert sums["energy_j"].isna().all()


def test_start_end_ranges_may_overlap(path):
    file = NsysFile(path)
    for i, at in enumerate((15, 25, 35)):
        file.kernel("k", at + 1, at + 2, correlationId=i)
        file.launch(i, at=at)
    file.range("a", 10, 30, eventType=60)
    file.range("b", 20, 40, eventType=60)
    assert parse_profiler_output(file.save())["range_name"].tolist() == ["a", "b", "b"]


def test_graphs_traced_as_a_whole_are_explained_in_one_line(path):
    file = NsysFile(path)
    for i in range(3):
        file.add("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", start=i, end=i + 1, deviceId=0, streamId=1, globalPid=PROCESS)
    with pytest.raises(NothingToParseError, match=r"3 launches of CUDA graphs .* --cuda-graph-trace=node") as caught:
        parse_profiler_output(file.save())
    assert "\n" not in str(caught.value)


def test_graphs_beside_kernels_take_their_share_of_the_energy(path, tmp_path):
    file = NsysFile(path)
    file.session(EPOCH_NS)
    file.kernel("gemm", 0, 10**9)
    file.add("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", start=0, end=2 * 10**9, deviceId=0, streamId=1, globalPid=PROCESS)
    log = write_log(tmp_path, [(-1, 200.0), (3, 200.0)], step_s=0.5)
    table = parse_profiler_output(file.save(), log)
    assert table["energy_j"].tolist() == [pytest.approx(100.0)]
    (window,) = table.attrs["windows"]
    assert window["hidden_j"] == pytest.approx(300.0)
    assert "1 launches of CUDA graphs hide their kernels" in table.attrs["notes"][0]


def test_nodes_of_a_graph_share_one_launch(path):
    file = NsysFile(path)
    for i in range(3):
        file.kernel("node", 100 * i, 100 * i + 50, correlationId=9, graphNodeId=i)
    file.launch(9, at=-10)
    file.range("op:expert_mlp", -20, 0)
    table = parse_profiler_output(file.save())
    assert (table["op_type"] == "expert_mlp").all()
    assert table["operation_id"].nunique() == 1


def test_the_old_nvprof_table_is_read_as_an_alias(path):
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE StringTable (_id_ INTEGER PRIMARY KEY, value TEXT);"
        "CREATE TABLE CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL"
        " (start INT, end INT, deviceId INT, streamId INT, correlationId INT, name INT, registersPerThread INT);"
        "INSERT INTO StringTable VALUES (4, 'vecAdd');"
        "INSERT INTO CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL VALUES (10, 30, 0, 7, 1, 4, 16);"
    )
    connection.commit()
    connection.close()
    table = parse_profiler_output(path)
    assert table[["kernel_name", "duration_ns"]].to_numpy().tolist() == [["vecAdd", 20]]


@pytest.mark.parametrize("suffix", ["_V2", "_V3"])
def test_tables_with_a_version_suffix_are_found(path, suffix):
    file = NsysFile(path)
    file.kernel("gemm", 0, 10)
    file.connection.execute(f"ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL RENAME TO CUPTI_ACTIVITY_KIND_KERNEL{suffix}")
    assert len(parse_profiler_output(file.save())) == 1


def test_columns_are_found_by_name_in_any_order_and_case(path):
    connection = sqlite3.connect(path)
    connection.executescript(
        'CREATE TABLE cupti_activity_kind_kernel (STREAMID INT, novel TEXT, DeviceId INT, "END" INT, Start INT);'
        "INSERT INTO cupti_activity_kind_kernel VALUES (7, 'x', 3, 20, 5);"
    )
    connection.commit()
    connection.close()
    row = parse_profiler_output(path).iloc[0]
    assert (row["device_id"], row["stream_id"], row["duration_ns"]) == (3, 7, 15)


def test_kernels_without_times_are_left_out_and_counted(path):
    file = NsysFile(path)
    file.kernel("gemm", 0, 10)
    file.kernel("gemm", 20, None)
    file.kernel("gemm", 40, 30)
    file.kernel("gemm", "soon", 50)
    table = parse_profiler_output(file.save())
    assert len(table) == 1
    assert "left out 3 kernels" in table.attrs["notes"][0]


def test_two_processes_each_with_device_zero_are_told_apart_by_uuid(path, tmp_path):
    file = NsysFile(path)
    file.session(EPOCH_NS)
    uuids = ["11111111-2222-3333-4444-555555555555", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"]
    for gpu, process in enumerate((PROCESS, OTHER_PROCESS)):
        file.kernel("gemm", 0, 10**9, globalPid=process)
        file.add("TARGET_INFO_GPU", id=gpu, uuid=uuids[gpu], busLocation=f"0000:{gpu}b:00.0", cuDevice=gpu)
        file.add("TARGET_INFO_CUDA_DEVICE", gpuId=gpu, cudaId=0, pid=process >> 24 & 0xFFFFFF)
    log = tmp_path / "log.csv"
    rows = [
        f"{(EPOCH_NS + at * 10**8) / 1e9:.6f},GPU-{uuid.upper()},{power}"
        for at in range(-5, 20)
        for uuid, power in zip(reversed(uuids), (400, 100), strict=True)
    ]
    log.write_text("\n".join(["wall_time_s,uuid,power_w", *rows]))
    table = parse_profiler_output(file.save(), log).sort_values("process_id")
    assert table["device_id"].tolist() == [0, 0]
    assert table["energy_j"].tolist() == [pytest.approx(100.0), pytest.approx(400.0)]
    assert len(table.attrs["windows"]) == 2


def test_two_processes_that_nothing_tells_apart_get_no_energy(path, tmp_path):
    file = NsysFile(path)
    file.session(EPOCH_NS)
    file.kernel("gemm", 0, 10**9, globalPid=PROCESS)
    file.kernel("gemm", 0, 10**9, globalPid=OTHER_PROCESS)
    file.kernel("gemm", 0, 10**9, deviceId=1)
    log = write_log(tmp_path, [(-1, 200.0), (3, 200.0)], step_s=0.5, extra={"index": 1})
    table = parse_profiler_output(file.save(), log)
    assert table.groupby("device_id")["energy_j"].count().tolist() == [0, 1]
    assert any("nothing tells whether it is one GPU" in note for note in table.attrs["notes"])


def test_gpu_metrics_are_averaged_over_each_kernel_on_its_device(path):
    file = NsysFile(path, "3.28.1")
    file.kernel("gemm", 150, 350)
    file.kernel("gemm", 300, 400, deviceId=1)
    file.kernel("gemm", 300, 5_000)
    for device in (0, 1):
        type_id = (77 << 8) | device
        file.add("TARGET_INFO_GPU_METRICS", typeId=type_id, metricId=3, metricName="SMs Active [Throughput %]")
        file.add("TARGET_INFO_GPU_METRICS", typeId=type_id, metricId=4, metricName="Unknown Metric")
        for at, value in ((100, 0), (200, 40), (300, 80), (400, 100)):
            here = value if device == 0 else 7
            file.add("GPU_METRICS", timestamp=at, rawTimestamp=at, typeId=type_id, metricId=3, value=here)
            file.add("GPU_METRICS", timestamp=at, rawTimestamp=at, typeId=type_id, metricId=4, value=1)
    table = parse_profiler_output(file.save())
    by_device = table.set_index(["device_id", "end_ns"])["sm_active_pct"]
    assert by_device[(0, 350)] == pytest.approx((40 * 50 + 80 * 100 + 100 * 50) / 200)
    assert by_device[(1, 400)] == pytest.approx(7.0)
    assert np.isnan(by_device[(0, 5_000)])
    assert table["tensor_active_pct"].isna().all()


@pytest.mark.parametrize("place", ["GPU_METRICS", "GENERIC_EVENTS data", "GENERIC_EVENTS json", "NVML_POWER"])
def test_power_in_the_export_is_discovered_wherever_it_lies(path, place):
    file = NsysFile(path)
    file.session(EPOCH_NS)
    file.kernel("gemm", 10**8, 5 * 10**8)
    stamps = range(0, 10**9, 10**8)
    if place == "GPU_METRICS":
        file.add("TARGET_INFO_GPU_METRICS", typeId=256, metricId=1, metricName="Board Power [mW]")
        for at in stamps:
            file.add("GPU_METRICS", timestamp=at, typeId=256, metricId=1, value=300_000)
    elif place == "NVML_POWER":
        file.connection.execute("CREATE TABLE NVML_POWER (timestamp INT, gpuId INT, powerUsage INT)")
        for at in stamps:
            file.connection.execute("INSERT INTO NVML_POWER VALUES (?, 0, 300000)", [at])
    else:
        file.add("GENERIC_EVENT_SOURCES", sourceId=1, nameId=file.text("NVML"))
        file.add("GENERIC_EVENT_TYPES", typeId=5, sourceId=1, nameId=file.text("GPU power draw"))
        file.add("GENERIC_EVENT_TYPES", typeId=6, sourceId=1, nameId=file.text("Power limit"))
        for i, at in enumerate(stamps):
            data = '{"power": 300.0}' if "json" in place else None
            file.add("GENERIC_EVENTS", genericEventId=i, timestamp=at, rawTimestamp=at, typeId=5, data=data)
            if data is None:
                file.add("GENERIC_EVENT_DATA", genericEventId=i, fieldIdx=0, uintVal=300_000)
                file.add("GENERIC_EVENTS", genericEventId=99 + i, timestamp=at, rawTimestamp=at, typeId=6)
                file.add("GENERIC_EVENT_DATA", genericEventId=99 + i, fieldIdx=0, uintVal=700_000)
    row = (table := parse_profiler_output(file.save())).iloc[0]
    assert row["energy_j"] == pytest.approx(300.0 * 0.4)
    assert row["power_source"] == f"nsys:{place.split()[0]}"
    assert "averages it over a second" in table.attrs["notes"][-1]


def test_a_log_is_preferred_to_power_in_the_export(path, tmp_path):
    file = NsysFile(path)
    file.session(EPOCH_NS)
    file.kernel("gemm", 0, 10**9)
    file.connection.execute("CREATE TABLE P (timestamp INT, power INT)")
    file.connection.execute("INSERT INTO P VALUES (-1, 100), (2000000000, 100)")
    log = write_log(tmp_path, [(-1, 200.0), (3, 200.0)], step_s=0.5)
    assert parse_profiler_output(file.save(), log)["energy_j"].tolist() == [pytest.approx(200.0)]


def test_power_without_a_session_start_is_joined_on_the_clock_of_the_trace(path):
    file = NsysFile(path)
    file.kernel("gemm", 0, 10**9)
    file.connection.execute("CREATE TABLE P (timestamp INT, power REAL)")
    file.connection.executemany("INSERT INTO P VALUES (?, 150.0)", [(at,) for at in range(-(10**9), 3 * 10**9, 10**8)])
    assert parse_profiler_output(file.save())["energy_j"].tolist() == [pytest.approx(150.0)]


def test_a_view_is_not_a_kernel_table_because_it_might_never_end(path):
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE VIEW CUPTI_ACTIVITY_KIND_KERNEL AS WITH RECURSIVE n(start) AS"
        " (SELECT 1 UNION ALL SELECT start + 1 FROM n LIMIT 1000) SELECT start, start AS end, 0 AS deviceId FROM n"
    )
    connection.commit()
    connection.close()
    with pytest.raises(NothingToParseError, match="the database has no tables"):
        parse_profiler_output(path)


def test_every_table_of_the_builder_may_be_empty(path):
    file = NsysFile(path)
    file.kernel("gemm", 0, 10)
    for table in TABLES:
        file.table(table)
    assert len(parse_profiler_output(file.save())) == 1


def write_log(folder, ends, *, step_s, extra=None):
    """A log of power on the wall clock of `EPOCH_NS`, linear between two ends (seconds, watts)."""
    (first, first_w), (last, last_w) = ends
    at = np.arange(first, last + step_s / 2, step_s)
    power_w = first_w + (last_w - first_w) * (at - first) / (last - first)
    names = ["wall_time_s", "power_w", *(extra or {})]
    rows = [
        ",".join(map(str, [f"{EPOCH_NS / 1e9 + t:.7f}", p, *(extra or {}).values()]))
        for t, p in zip(at, power_w, strict=True)
    ]
    path = folder / "power.csv"
    path.write_text("\n".join([",".join(names), *rows]))
    return path
