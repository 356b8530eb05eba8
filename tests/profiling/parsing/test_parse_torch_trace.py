"""Chrome traces of torch.profiler, made by hand in the form that its releases write (synthetic)."""

import gzip
import json

import pytest

from thermoe.errors import DataError
from thermoe.profiling.parsing import NothingToParseError, parse_profiler_output
from thermoe.profiling.parsing.json_stream import JsonStream
from thermoe.profiling.parsing.torch_trace import _short_name

BASE_NS = 1_790_857_026_000_000_000
KERNEL = "void at::native::vectorized_elementwise_kernel<4, at::native::(anonymous namespace)::f>(int, float*)"


def kernel(ts_us, dur_us, correlation, device=0, stream=7, name=KERNEL):
    args = {"device": device, "stream": stream, "correlation": correlation, "grid": [4, 2, 1], "block": [128, 1, 1]}
    args |= {"registers per thread": 40, "est. achieved occupancy %": 25}
    return {
        "ph": "X",
        "cat": "kernel",
        "name": name,
        "pid": device,
        "tid": stream,
        "ts": ts_us,
        "dur": dur_us,
        "args": args,
    }


def launch(ts_us, correlation, pid=100, tid=100):
    args = {"correlation": correlation, "cbid": 211}
    return {
        "ph": "X",
        "cat": "cuda_runtime",
        "name": "cudaLaunchKernel",
        "pid": pid,
        "tid": tid,
        "ts": ts_us,
        "dur": 3,
        "args": args,
    }


def annotation(name, ts_us, dur_us, pid=100, tid=100, cat="user_annotation"):
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts_us, "dur": dur_us}


def write(path, events, **members):
    text = json.dumps(
        {"schemaVersion": 1, "baseTimeNanoseconds": BASE_NS} | members | {"traceEvents": events, "traceName": "x"}
    )
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


EVENTS = [
    {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}},
    annotation("op:expert_mlp", 1000.0, 100.0),
    annotation("aten::mm", 1010.0, 20.0, cat="cpu_op"),
    launch(1015.5, 1),
    kernel(1200.001, 50.25, 1),
    launch(1090.0, 2),
    kernel(1300.0, 10.0, 2, name="nvjet_tst_192x192"),
    launch(1015.0, 3, tid=200),
    kernel(1400.0, 10.0, 3, name="softmax_warp_forward"),
    {"ph": "X", "cat": "gpu_user_annotation", "name": "op:expert_mlp", "pid": 0, "tid": 7, "ts": 1200, "dur": 500},
]


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz", "trace.pt.trace"])
def test_kernels_come_with_their_ranges_by_launch(tmp_path, name):
    table = parse_profiler_output(write(tmp_path / name, EVENTS))
    assert table["kernel_name"].tolist() == [
        "vectorized_elementwise_kernel",
        "nvjet_tst_192x192",
        "softmax_warp_forward",
    ]
    assert table["op_type"].tolist() == ["expert_mlp", "expert_mlp", "softmax"]
    assert table["range_name"].fillna("").tolist() == ["aten::mm", "op:expert_mlp", ""]
    assert table["operation_id"].nunique() == 1
    first = table.to_dict("records")[0]
    assert (first["start_ns"], first["end_ns"]) == (1_200_001, 1_250_251)
    assert first["start_wall_ns"] == BASE_NS + 1_200_001
    assert (first["grid_size"], first["block_size"], first["registers_per_thread"]) == (8, 128, 40)
    assert (first["process_id"], first["warps_active_pct"]) == (100, 25.0)


def test_a_list_of_events_without_members_is_a_trace_without_wall_clock(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(EVENTS))
    table = parse_profiler_output(path)
    assert len(table) == 3
    assert table["start_wall_ns"].isna().all()
    assert "no base time" in table.attrs["notes"][-1]


def test_stamps_of_older_releases_count_from_the_epoch(tmp_path):
    events = [kernel(1_700_000_000_000_000.25, 5.0, 1)]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"traceEvents": events}))
    assert parse_profiler_output(path)["start_wall_ns"].tolist() == [1_700_000_000_000_000_250]


def test_correlations_shared_by_two_processes_are_not_attributed(tmp_path):
    events = [
        *(annotation("op:combine", 0.0, 100.0, pid=pid, tid=pid) for pid in (1, 2)),
        *(launch(10.0, 7, pid=pid, tid=pid) for pid in (1, 2)),
        launch(10.0, 8, pid=1, tid=1),
        kernel(50.0, 5.0, 7),
        kernel(60.0, 5.0, 8),
    ]
    table = parse_profiler_output(write(tmp_path / "t.json", events))
    assert table["range_name"].fillna("").tolist() == ["", "op:combine"]
    assert table["process_id"].isna().all()


def test_identity_of_devices_comes_from_the_member_that_the_runner_adds(tmp_path):
    devices = [{"id": 0, "uuid": "GPU-AAAAAAAA-bbbb-cccc-dddd-eeeeeeeeeeee", "bus": "00000000:3B:00.0"}]
    row = parse_profiler_output(write(tmp_path / "t.json", EVENTS, thermoe_devices=devices)).iloc[0]
    assert (row["device_uuid"], row["device_bus"]) == ("aaaaaaaabbbbccccddddeeeeeeeeeeee", "0:3b:0")


def test_a_trace_of_the_cpu_alone_says_so(tmp_path):
    path = write(tmp_path / "t.json", [annotation("aten::mm", 0, 1, cat="cpu_op")])
    with pytest.raises(NothingToParseError, match=r"1 ranges of the CPU.*ProfilerActivity\.CUDA"):
        parse_profiler_output(path)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_truncated_trace_is_one_clear_line(tmp_path, share, name):
    whole = write(tmp_path / name, EVENTS * 50).read_bytes()
    (tmp_path / name).write_bytes(whole[: max(int(share * len(whole)), 12)])
    with pytest.raises(DataError, match=r"truncated|cannot be unpacked") as caught:
        parse_profiler_output(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{]", '{"traceEvents": 5}', '{"a": 1', "[" * 100_000, '{"traceEvents": [}]}', '{"a":' + "1" * 5000 + "}"]
)
def test_broken_json_is_an_error_of_ours(tmp_path, text):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(DataError):
        parse_profiler_output(path)


@pytest.mark.parametrize("change", [{"ts": "x"}, {"ts": None}, {"dur": -1}, {"ts": 1e300}, {"ts": float("nan")}])
def test_kernels_without_a_time_are_left_out_and_counted(tmp_path, change):
    table = parse_profiler_output(write(tmp_path / "t.json", [*EVENTS, kernel(1.0, 1.0, 9) | change]))
    assert len(table) == 3
    assert "left out 1 kernels" in table.attrs["notes"][0]


def test_values_across_the_borders_of_pieces_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("thermoe.profiling.parsing.json_stream._CHUNK_CHARS", 7)
    members = {"n": 1234567890123, "s": 'a "quoted" text', "traceEvents": [1, [2, {"x": -3.5e-7}], "four"]}
    path = tmp_path / "t.json"
    path.write_text(json.dumps(members))
    items = []
    stream = JsonStream(path)
    found = dict(stream.members("traceEvents", items.append))
    stream.close()
    assert found == {"n": 1234567890123, "s": 'a "quoted" text'}
    assert items == members["traceEvents"]


@pytest.mark.parametrize(
    ("signature", "want"),
    [
        (KERNEL, "vectorized_elementwise_kernel"),
        ("nvjet_tst_192x192_64x4", "nvjet_tst_192x192_64x4"),
        ("vecAdd(double*, int)", "vecAdd"),
        ("void (anonymous namespace)::softmax<float, (int)4>(T*)", "softmax"),
        ("Memcpy HtoD (Pageable -> Device)", "HtoD"),
        ("", ""),
    ],
)
def test_short_names(signature, want):
    assert _short_name(signature) == want
