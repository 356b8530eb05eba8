"""Profilers' runners against stand-ins for their programs: what they are asked for, and how failures come back."""

import gzip
import json
import sys
import time
from pathlib import Path

import pytest
from nsys_file import NsysFile

from thermoe.errors import DataError
from thermoe.profiling.external import ProfilerError, ProfilerUnusableError, run_program
from thermoe.profiling.ncu_runner import run_ncu
from thermoe.profiling.nsys_runner import run_nsys
from thermoe.profiling.parsing import NothingToParseError, parse_profiler_output
from thermoe.profiling.power_recorder import PowerRecorder
from thermoe.profiling.torch_trace_runner import record
from thermoe.profiling.trace_devices import device_identities
from thermoe.types import Kind, SysState

NSYS = """#!{python}
import json, pathlib, shutil, subprocess, sys
here = pathlib.Path(__file__).parent
arguments = sys.argv[1:]
with (here / "calls.jsonl").open("a") as file:
    print(json.dumps(arguments), file=file)
output = next(a.split("=", 1)[1] for a in arguments if a.startswith("--output="))
if arguments[0] == "profile":
    command = arguments[[a.startswith("--output=") for a in arguments].index(True) + 1 :]
    code = subprocess.run(command).returncode
    if code:
        sys.exit(code)
    pathlib.Path(output + ".nsys-rep").write_text("report")
else:
    shutil.copy(here / "made.sqlite", output)
"""
NCU = """#!{python}
import json, pathlib, subprocess, sys
arguments = sys.argv[1:]
(pathlib.Path(__file__).parent / "calls.jsonl").write_text(json.dumps(arguments))
log = pathlib.Path(arguments[arguments.index("--log-file") + 1])
command = arguments[arguments.index("--log-file") + 2 :]
code = subprocess.run(command).returncode
log.write_text(pathlib.Path(__file__).with_name("answer.csv").read_text())
sys.exit(code)
"""


class Steady:
    """A source on the real clock that always says the same."""

    name, kind = "steady", Kind.SIMULATED

    def read(self):
        return SysState(
            time_s=time.monotonic(), wall_time_s=time.time(), source=self.name, kind=self.kind, power_w=250.0
        )

    def close(self):
        pass


def stand_in(folder, name, text):
    path = folder / name
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "case.py"
    path.write_text(
        "import pathlib, sys\n"
        "if 'fail' in sys.argv:\n"
        "    raise RuntimeError('out of\\n memory')\n"
        "pathlib.Path(__file__).with_name('ran.txt').write_text(' '.join(sys.argv[1:]))\n"
    )
    return path


@pytest.fixture
def nsys(tmp_path):
    file = NsysFile(tmp_path / "made.sqlite")
    file.session(time.time_ns())
    file.kernel("gemm", 0, 10)
    file.save()
    return stand_in(tmp_path, "nsys", NSYS)


def test_nsys_traces_kernels_inside_graphs_and_exports_what_is_parsed(nsys, script, tmp_path):
    table = run_nsys(script, ["--repeats", "3"], executable=str(nsys), open_sources=list)
    assert table["kernel_name"].tolist() == ["gemm"]
    assert (tmp_path / "ran.txt").read_text() == "--repeats 3"
    profile, export = (json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines())
    assert {"--trace=cuda,nvtx", "--cuda-graph-trace=node", "--sample=none"} <= set(profile)
    assert profile[-4:] == [sys.executable, str(script), "--repeats", "3"]
    assert export[:2] == ["export", "--type=sqlite"]


def test_nsys_energy_comes_from_the_power_logged_beside(tmp_path, script):
    file = NsysFile(tmp_path / "made.sqlite")
    file.session(time.time_ns() - 500_000_000)
    for i in range(400):
        file.kernel("gemm", i * 10_000_000, i * 10_000_000 + 5_000_000)
    file.save()
    script.write_text("import time\ntime.sleep(0.3)\n")
    program = stand_in(tmp_path, "nsys", NSYS)
    table = run_nsys(script, executable=str(program), open_sources=lambda: [Steady()])
    known = table[table["energy_j"].notna()]
    assert 0 < len(known) < len(table)
    assert set(known["energy_kind"]) == {"simulated"}
    (window,) = table.attrs["windows"]
    assert known["power_w_mean"].tolist() == pytest.approx([250.0] * len(known))
    parts_j = known["energy_j"].sum() + window["idle_j"] + window["lost_j"]
    assert parts_j == pytest.approx(window["window_j"])


def test_a_script_that_fails_under_nsys_gives_its_last_words_in_one_line(nsys, script):
    with pytest.raises(ProfilerError, match=r"nsys ended with 1: .*RuntimeError: out of memory") as caught:
        run_nsys(script, ["fail"], executable=str(nsys), open_sources=list)
    assert "\n" not in str(caught.value)


def test_nsys_without_a_report_or_kernels_says_so(nsys, script, tmp_path):
    file = NsysFile(tmp_path / "made.sqlite.new")
    (tmp_path / "made.sqlite").write_bytes(file.save().read_bytes())
    with pytest.raises(DataError, match="holds no kernels"):
        run_nsys(script, executable=str(nsys), open_sources=list)
    nsys.write_text(f"#!{sys.executable}\n")
    with pytest.raises(ProfilerError, match="wrote no report"):
        run_nsys(script, executable=str(nsys), open_sources=list)


@pytest.mark.parametrize("run", [run_nsys, run_ncu])
def test_a_profiler_that_is_not_there_is_named_with_the_remedy(run, script):
    with pytest.raises(ProfilerError, match=r"no executable nowhere-to-be-found: install NVIDIA Nsight"):
        run(script, executable="nowhere-to-be-found")


ANSWER = '"ID","Process ID","Kernel Name","dram__bytes_read.sum"\n"","","","byte"\n"0","9","gemm(int)","4096"\n'


def test_ncu_leaves_clocks_and_caches_alone(script, tmp_path):
    (tmp_path / "answer.csv").write_text("==PROF== Connected\n" + ANSWER)
    table = run_ncu(script, ["x"], executable=str(stand_in(tmp_path, "ncu", NCU)), most_kernels=7)
    assert table[["kernel_name", "dram_read_bytes"]].to_numpy().tolist() == [["gemm", 4096.0]]
    words = " ".join(json.loads((tmp_path / "calls.jsonl").read_text()))
    for wanted in (
        "--clock-control none",
        "--cache-control none",
        "--page raw",
        "--launch-count 7",
        "dram__bytes_read.sum",
    ):
        assert wanted in words


@pytest.mark.parametrize(
    ("answer", "arguments", "said"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n", [], "may not read the counters"),
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n", ["fail"], "may not read the counters"),
        ("==WARNING== No kernels were profiled.\n", [], "profiled no kernel"),
        ("", ["fail"], "out of memory"),
    ],
)
def test_failures_of_ncu_are_one_line(script, tmp_path, answer, arguments, said):
    (tmp_path / "answer.csv").write_text(answer)
    with pytest.raises(ProfilerError, match=said) as caught:
        run_ncu(script, arguments, executable=str(stand_in(tmp_path, "ncu", NCU)))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ProfilerUnusableError) == ("PERM" in answer)


def test_what_takes_too_long_is_killed_with_its_children(tmp_path):
    child = tmp_path / "pid"
    code = (
        "import subprocess; p = subprocess.Popen(['sleep', '60']);"
        f" open({str(child)!r}, 'w').write(str(p.pid)); p.wait()"
    )
    with pytest.raises(ProfilerError, match="did not end in 2 s and was killed"):
        run_program([sys.executable, "-c", code], timeout_s=2.0)
    deadline_s = time.monotonic() + 5.0
    while is_running(child.read_text()) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not is_running(child.read_text())


def is_running(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_the_recorder_logs_from_before_the_start_to_after_the_end(tmp_path):
    started_s = time.time()
    with PowerRecorder(tmp_path / "p.csv", lambda: [Steady()], interval_s=0.02) as recorder:
        time.sleep(0.2)
    rows = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    stamps = [float(row[0]) for row in rows]
    assert recorder.path == tmp_path / "p.csv"
    assert started_s - 0.01 <= stamps[0] < started_s + 0.1
    assert stamps[-1] >= started_s + 0.2
    assert len(rows) >= 4
    assert all(float(row[5]) > 0 for row in rows)


def test_without_sensors_there_is_no_log(tmp_path):
    with PowerRecorder(tmp_path / "p.csv", list) as recorder:
        pass
    assert recorder.path is None
    assert list(tmp_path.iterdir()) == []


def test_torch_profiler_writes_its_trace_and_hands_on_how_the_script_ended(tmp_path, script):
    script.write_text(
        "import sys, helper_beside, torch\n"
        "with torch.profiler.record_function('op:expert_mlp'):\n"
        "    torch.ones(4, 4) @ torch.ones(4, 4)\n"
        "sys.exit(' '.join(sys.argv[1:]))\n"
    )
    (tmp_path / "helper_beside.py").write_text("")
    with pytest.raises(ProfilerError, match="no luck"):
        record(script, ["no", "luck"], tmp_path, open_sources=list)
    with pytest.raises(NothingToParseError, match=r"ranges of the CPU.*ProfilerActivity\.CUDA"):
        parse_profiler_output(tmp_path / "trace.json.gz")
    with gzip.open(tmp_path / "trace.json.gz", "rt") as trace:
        assert json.load(trace)["thermoe_devices"] == device_identities()
