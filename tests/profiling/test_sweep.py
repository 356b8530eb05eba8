import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from thermoe.cost.database import CostDatabase
from thermoe.cost.rows import DeviceKey
from thermoe.cost.safe_file import writing_alone
from thermoe.cost.sources import observations_of
from thermoe.errors import ConfigError, CostError, DataError
from thermoe.profiling.candidates import expert_case
from thermoe.profiling.command import Profile
from thermoe.profiling.in_process import InProcess, Protocol
from thermoe.profiling.operations import OPERATIONS
from thermoe.profiling.sweep import sweep
from thermoe.types import Kind, SysState

KEY = DeviceKey(gpu="cpu test", driver="", torch="2", triton="", kernel_revision="1")
SIZES = (16, 8, 4, 2)
QUICK = Protocol(window_s=0.05, windows=2, warm_up_s=0.0, rounds=3, min_steps=2, max_steps=2, cache_bytes=1e5)


def cases(**changes):
    return [
        expert_case("expert_mlp", "loop", SIZES, rows, 2, **({"dtype": "float32", "energy": False} | changes))
        for rows in (2, 4, 6)
    ]


def in_process(read_state=None) -> InProcess:
    return InProcess(torch.device("cpu"), KEY, read_state, QUICK)


def run_sweep(plan, measure, out, minutes=None):
    return sweep(plan, measure, KEY, out, minutes=minutes, report=lambda progress: None)


def test_profiler_runs_on_a_cpu_and_the_file_reads_back(tmp_path):
    out = tmp_path / "x.costs.json"
    result = run_sweep(cases(), in_process().measure, out)
    assert (result.measured, result.skipped, result.failed, result.left) == (3, 0, 0, 0)
    rows = CostDatabase.load(out).rows
    assert [r.routed_rows for r in rows] == [2, 4, 6]
    assert all(r.kind is Kind.MEASURED and r.energy_mj is None and r.latency_us > 0 for r in rows)
    assert all(r.repeats == 6 for r in rows)


def test_a_failing_case_is_recorded_in_its_own_words_and_the_sweep_goes_on(tmp_path):
    out, measure = tmp_path / "x.costs.json", in_process().measure

    def sometimes(case):
        if case.routed_rows == 4:
            raise RuntimeError("out of memory")
        return measure(case)

    result = run_sweep(cases(), sometimes, out)
    assert (result.measured, result.failed) == (2, 1)
    (failure,) = CostDatabase.load(out).failures
    assert failure.message == "RuntimeError: out of memory"
    assert "4 rows" in failure.case


def test_a_second_sweep_measures_only_what_is_missing(tmp_path):
    out, measure, seen = tmp_path / "x.costs.json", in_process().measure, []
    run_sweep(cases()[:2], measure, out)
    before = CostDatabase.load(out).rows

    def watched(case):
        seen.append(case.routed_rows)
        return measure(case)

    result = run_sweep(cases(), watched, out)
    assert (result.measured, result.skipped, seen) == (1, 2, [6])
    assert CostDatabase.load(out).rows[:2] == before


def test_time_budget_leaves_the_rest(tmp_path):
    result = run_sweep(cases(), in_process().measure, tmp_path / "x.costs.json", minutes=1e-9)
    assert (result.measured, result.left) == (0, 3)


def test_a_wrong_result_is_never_timed(tmp_path, monkeypatch):
    monkeypatch.setattr("thermoe.profiling.operations.experts.TorchMlp.rel_error", lambda self: 0.5)
    with pytest.raises(CostError, match=r"relative error 0\.5 over"):
        in_process().measure(cases()[0])


def test_energy_is_power_by_the_counter_times_latency():
    clock = iter(range(10**7))

    def read() -> SysState:
        time_s = 0.1 * next(clock)
        return SysState(
            time_s=time_s, wall_time_s=time_s, source="t", kind=Kind.MEASURED, energy_j=250.0 * time_s, power_w=240.0
        )

    row = in_process(read).measure(cases(energy=True)[0])
    assert row.power_w == pytest.approx(250.0, rel=1e-4)
    assert row.energy_mj == pytest.approx(250.0 * row.latency_sustained_us * 1e-3, rel=1e-4)
    assert row.energy_integrated_mj == pytest.approx(240.0 * row.latency_sustained_us * 1e-3, rel=1e-4)


def test_energy_is_not_measured_while_the_process_is_held_up(monkeypatch):
    """A window of ten readings, however fast this machine is just now; time stands still after the third."""
    clock = iter(range(10**7))

    def ten_readings(self, seconds, sample):
        for _ in range(10):
            sample()
        return 1e-3

    monkeypatch.setattr("thermoe.profiling.runner.CpuRunner.sustain", ten_readings)

    def read() -> SysState:
        tick = next(clock)
        time_s = 0.01 * tick + (60.0 if tick > 3 else 0.0)
        return SysState(time_s=time_s, wall_time_s=time_s, source="t", kind=Kind.MEASURED, energy_j=2.5 * tick)

    with pytest.raises(CostError, match="held up"):
        in_process(read).measure(cases(energy=True)[0])


@pytest.mark.parametrize("wrong", [{"device": "tpu"}, {"minutes": 0.0}, {"window_s": 0.5}])
def test_wrong_settings_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError):
        Profile(out=tmp_path / "x", **wrong)


def test_command_measures_selected_operations(tmp_path):
    out = tmp_path / "x.costs.json"
    assert Profile(out=out, ops=("router_topk",), device="cpu").execute() == 0
    assert {r.op for r in CostDatabase.load(out).rows} == {"router_topk"}
    with pytest.raises(ConfigError, match="no operation sing"):
        Profile(out=out, ops=("sing",), device="cpu").execute()


def test_module_ends_with_2_on_a_foreign_file(tmp_path: Path):
    out = tmp_path / "x.costs.json"
    out.write_text('{"rows": []}')
    command = [sys.executable, "-m", "thermoe.profiling", "--out", str(out), "--device", "cpu", "--plain"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "is no thermoe.costs file" in ended.stderr


def steady(power_w=250.0):
    clock = iter(range(10**7))

    def read() -> SysState:
        time_s = 0.1 * next(clock)
        return SysState(time_s=time_s, wall_time_s=time_s, source="t", kind=Kind.MEASURED, energy_j=power_w * time_s)

    return read


def test_a_figure_of_energy_has_its_windows_and_their_spread():
    row = in_process(steady()).measure(cases(energy=True)[0])
    assert row.windows == 2
    assert row.energy_spread_pct >= 0.0
    assert in_process(steady()).measure(cases()[0]).windows is None


def test_a_case_measured_without_energy_is_measured_again_when_energy_is_wanted(tmp_path):
    out = tmp_path / "x.costs.json"
    run_sweep(cases(), in_process().measure, out)
    wanted = cases(energy=True)[:1] + cases()[1:]
    without_sensors = sweep(
        wanted, in_process().measure, KEY, out, minutes=None, has_sensors=False, report=lambda progress: None
    )
    assert (without_sensors.measured, without_sensors.skipped) == (0, 3)
    result = run_sweep(wanted, in_process(steady()).measure, out)
    assert (result.measured, result.skipped) == (1, 2)
    assert [r.energy_mj is not None for r in CostDatabase.load(out).rows] == [False, False, True]
    assert run_sweep(wanted, in_process(steady()).measure, out).measured == 0


def test_occasions_stand_side_by_side(tmp_path):
    out, profiler = tmp_path / "x.costs.json", in_process()
    for occasion in ("first", "second"):
        profiler.occasion = occasion
        sweep(cases(), profiler.measure, KEY, out, minutes=None, again=True, report=lambda progress: None)
    assert [r.occasion for r in CostDatabase.load(out).rows] == ["first"] * 3 + ["second"] * 3


def test_measuring_again_goes_on_where_a_spoilt_process_stopped(tmp_path):
    out, profiler = tmp_path / "x.costs.json", in_process()
    settings = {"minutes": None, "again": True, "report": lambda progress: None}
    profiler.occasion = "2026-01-01T00:00:00Z"
    sweep(cases(), profiler.measure, KEY, out, **settings)
    profiler.occasion = "2026-01-02T00:00:00Z"
    sweep(cases()[:1], profiler.measure, KEY, out, **settings)
    profiler.occasion = "2026-01-02T00:05:00Z"
    result = sweep(cases(), profiler.measure, KEY, out, since="2026-01-02T00:00:00Z", **settings)
    assert (result.measured, result.skipped) == (2, 1)
    words = Profile(out=out, resume=False)._arguments("2026-01-02T00:00:00Z")
    assert words[words.index("--since") + 1] == "2026-01-02T00:00:00Z"
    assert "--no-resume" in words


def test_a_smoke_run_is_no_measurement(tmp_path):
    out, ops = tmp_path / "x.costs.json", ("router_topk",)
    Profile(out=out, ops=ops, device="cpu", smoke=True, plain=True).execute()
    smoke, *others = CostDatabase.load(out).rows
    assert smoke.is_smoke
    assert all(row.is_smoke for row in others)
    with pytest.raises(DataError, match="all 3 rows show only that their case runs"):
        observations_of(CostDatabase.load(out))
    assert CostDatabase.load(out).diff(CostDatabase.load(out)) == []
    case = expert_case("expert_mlp", "loop", SIZES, 2, 2, dtype="float32", energy=False)
    measure, told = in_process(), []
    measure.occasion = smoke.occasion
    sweep([case], measure.measure, KEY, out, minutes=None, smoke=True, report=told.append)
    again = sweep([case], measure.measure, KEY, out, minutes=None, smoke=True, report=told.append)
    costs = sweep([case], measure.measure, KEY, out, minutes=None, report=told.append)
    assert (again.skipped, costs.skipped, costs.measured) == (1, 0, 1)


def test_databases_that_are_known_count_on_a_cpu_too(tmp_path, capsys):
    out, known, ops = tmp_path / "x.costs.json", tmp_path / "known.costs.json", ("router_topk",)
    Profile(out=known, ops=ops, device="cpu", plain=True).execute()
    assert Profile(out=out, ops=ops, device="cpu", known=(known,), plain=True).execute() == 0
    assert "0 measured, 0 skipped" in capsys.readouterr().err
    with pytest.raises(DataError, match="cannot be read"):
        Profile(out=out, ops=ops, device="cpu", known=(tmp_path / "missing",), plain=True).execute()
    with pytest.raises(DataError, match="cannot be read"):
        Profile(out=out, ops=ops, device="cpu", model=tmp_path / "missing", plain=True).execute()
    with pytest.raises(ConfigError, match="no energy"):
        Profile(out=out, ops=ops, device="cpu", energy_only=True).execute()


def test_two_sweeps_do_not_write_one_file(tmp_path):
    out = tmp_path / "x.costs.json"
    with writing_alone(out), pytest.raises(ConfigError, match="another process writes"):
        Profile(out=out, ops=("router_topk",), device="cpu", plain=True).execute()


def test_what_was_measured_before_an_interruption_is_in_the_file(tmp_path):
    out, measure = tmp_path / "x.costs.json", in_process().measure

    def interrupted(case):
        if case.routed_rows == 6:
            raise KeyboardInterrupt
        return measure(case)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(cases(), interrupted, out)
    assert len(CostDatabase.load(out)) == 2


def test_progress_counts_and_says_how_long_the_rest_takes(tmp_path, monkeypatch):
    told, row = [], in_process().measure(cases()[0])
    now_s = iter(range(0, 1000, 2))
    monkeypatch.setattr("thermoe.profiling.sweep.time.monotonic", lambda: float(next(now_s)))
    sweep(cases(), lambda case: row, KEY, tmp_path / "x", minutes=None, report=told.append)
    assert [p.done for p in told] == [1, 2, 3]
    assert [p.left_s for p in told] == [4.0, 2.0, 0.0]


def test_a_result_is_checked_once_for_each_kind_of_case():
    profiler = in_process()
    rows = [profiler.measure(case) for case in cases()]
    assert rows[0].rel_error < 1e-5
    assert [row.rel_error for row in rows[1:]] == [None, None]


def test_a_result_at_other_sizes_is_checked_too():
    profiler, case = in_process(), cases()[0]
    wider = replace(case, inter_size=2 * case.inter_size)
    assert all(profiler.measure(c).rel_error is not None for c in (case, wider))


def test_command_measures_each_case_in_its_own_process(tmp_path, monkeypatch):
    out = tmp_path / "x.costs.json"
    monkeypatch.setattr("thermoe.profiling.command.cpu_plan", lambda: cases()[:1])
    assert Profile(out=out, device="cpu", runner="subprocess", plain=True).execute() == 0
    assert len(CostDatabase.load(out)) == 1


def test_smoke_runs_every_operation_on_a_cpu(tmp_path):
    out = tmp_path / "x.costs.json"
    assert Profile(out=out, device="cpu", smoke=True, plain=True).execute() == 0
    costs = CostDatabase.load(out)
    assert costs.failures == []
    assert {r.op for r in costs.rows} == set(OPERATIONS)


def test_the_most_uncertain_cases_of_a_model_come_first(tmp_path):
    from thermoe.cost.kernel_cost_model import KernelCostModel
    from thermoe.profiling.model_widths import UNKNOWN, interval_widths

    KernelCostModel.shipped().save(tmp_path / "model.json")
    width = interval_widths(tmp_path / "model.json")
    known = expert_case("expert_mlp", "grouped_mm", (2048, 768, 128, 8), 128, 32)
    assert 0.0 < width(known) < UNKNOWN
    assert width(expert_case("copy", "torch", (2048, 1, 1, 1), 128, 1, dtype="float32")) == UNKNOWN


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_smoke_runs_every_operation_on_a_gpu(tmp_path):
    out = tmp_path / "x.costs.json"
    assert Profile(out=out, device="cuda", smoke=True, plain=True).execute() == 0
    costs = CostDatabase.load(out)
    assert costs.failures == []
    assert {r.op for r in costs.rows} == set(OPERATIONS)
    assert any(r.energy_mj for r in costs.rows)
