import logging
import threading
import time

import pytest

from thermoe.errors import ConfigError, TelemetryError
from thermoe.telemetry import (
    DigitalTwin,
    GpuSystemMonitor,
    ReplaySource,
    SimulatedSource,
    power_pressure,
    thermal_pressure,
)
from thermoe.types import NAMED_SHAPES, Kind, StepWork, SysState

QWEN = NAMED_SHAPES["qwen3-30b-a3b"]


def state(time_s=0.0, kind=Kind.MEASURED, **values):
    return SysState(time_s=time_s, wall_time_s=time_s, source="test", kind=kind, **values)


class Scripted:
    """Gives what it is told to; an exception in the list is raised."""

    name = "scripted"
    kind = Kind.MEASURED

    def __init__(self, answers):
        self.answers = list(answers)

    def read(self):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        pass


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def monitor_threads():
    return [t for t in threading.enumerate() if t.name.startswith("thermoe-monitor")]


def test_nothing_runs_before_start_or_after_stop():
    monitor = GpuSystemMonitor(SimulatedSource(DigitalTwin(), realtime=True), interval_s=0.01)
    assert monitor.latest is None
    assert monitor.thermal_pressure is None
    assert monitor.power_pressure is None
    assert monitor_threads() == []

    monitor.start()
    monitor.start()
    assert len(monitor_threads()) == 1
    assert monitor.running
    wait_for(lambda: len(monitor.history) >= 4)
    monitor.stop()
    monitor.stop()
    assert monitor_threads() == []
    count = len(monitor.history)
    time.sleep(0.05)
    assert len(monitor.history) == count

    with monitor:
        wait_for(lambda: len(monitor.history) > count + 1)
    assert not monitor.running


def test_an_error_inside_the_block_still_stops_the_thread():
    with pytest.raises(ZeroDivisionError), GpuSystemMonitor(SimulatedSource(DigitalTwin())):
        raise ZeroDivisionError
    assert monitor_threads() == []


def test_latest_does_not_wait_for_a_sensor_that_hangs():
    release = threading.Event()

    class Hanging(Scripted):
        def read(self):
            if len(self.answers) == 1:
                release.wait(20.0)
            return super().read()

    monitor = GpuSystemMonitor(Hanging([state(1.0), state(2.0)]), interval_s=0.001).start()
    try:
        time.sleep(0.05)
        begin = time.perf_counter()
        assert monitor.latest == state(1.0)
        assert time.perf_counter() - begin < 0.05
    finally:
        release.set()
        monitor.stop()


def test_history_is_bounded_and_ordered():
    monitor = GpuSystemMonitor(Scripted([state(float(i)) for i in range(9)]), history=4)
    for _ in range(9):
        monitor.sample()
    assert [s.time_s for s in monitor.history] == [5.0, 6.0, 7.0, 8.0]
    assert monitor.latest.time_s == 8.0


def test_a_source_that_fails_is_reported_once_reads_none_and_recovers(caplog):
    answers = [
        state(1.0, power_w=50.0),
        RuntimeError("bus"),
        OSError("gone"),
        state(2.0, power_w=60.0),
        ValueError("x"),
    ]
    monitor = GpuSystemMonitor(Scripted(answers))
    with caplog.at_level(logging.INFO):
        seen = [monitor.sample() for _ in range(6)]

    assert [s.power_w for s in seen] == [50.0, None, None, 60.0, None, None]
    assert seen[1].temp_c is None
    assert seen[1].source == "scripted"
    assert seen[1].kind is Kind.MEASURED
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO", "WARNING"]
    assert "bus" in caplog.records[0].getMessage()


def test_a_background_thread_outlives_a_failing_source(caplog):
    monitor = GpuSystemMonitor(Scripted([RuntimeError("bus")] * 3 + [state(9.0)]), interval_s=0.001)
    with monitor:
        wait_for(lambda: monitor.latest is not None and monitor.latest.time_s == 9.0)
    assert len(caplog.records) == 1


def test_a_replay_that_ends_does_not_end_the_run():
    monitor = GpuSystemMonitor(ReplaySource([state(3.0, power_w=1.0)]))
    assert [monitor.sample().power_w for _ in range(3)] == [1.0, None, None]
    assert monitor.latest.time_s == 3.0
    assert monitor.latest.kind is Kind.REPLAYED


def test_a_window_over_the_twin_agrees_with_its_exact_energy():
    twin = DigitalTwin()
    monitor = GpuSystemMonitor(SimulatedSource(twin))
    work = StepWork(shape=QWEN, num_tokens=16, distinct_experts=[82.0] * 48, routed_rows=[128.0] * 48)
    while twin.time_s < 3.0:  # power has settled
        twin.run_step(work)
    monitor.begin_window()
    begin_j, begin_s = twin.energy_j, twin.time_s
    while twin.time_s < 8.0:
        twin.run_step(work)
        monitor.sample()
    window = monitor.end_window()

    assert window.kind is Kind.SIMULATED
    assert window.duration_s == pytest.approx(twin.time_s - begin_s)
    assert window.energy_counter_j == pytest.approx(twin.energy_j - begin_j, rel=0.03)
    assert window.energy_integrated_j == pytest.approx(twin.energy_j - begin_j, rel=0.01)
    assert abs(window.disagreement_pct) < 4.0
    assert window.power_mean_w == pytest.approx(610.0, rel=0.03)
    assert window.temp_peak_c > window.temp_mean_c > 45.0
    assert window.throttled is False


def test_windows_of_different_names_overlap_and_wrong_names_are_refused():
    monitor = GpuSystemMonitor(Scripted([state(float(i) / 2, power_w=100.0) for i in range(6)]))
    monitor.begin_window("run")
    monitor.begin_window("batch")
    with pytest.raises(ConfigError, match="batch"):
        monitor.begin_window("batch")
    assert monitor.end_window("batch").energy_integrated_j == pytest.approx(50.0)
    assert monitor.end_window("run").energy_integrated_j == pytest.approx(150.0)
    with pytest.raises(ConfigError, match="begin_window"):
        monitor.end_window("run")


def test_a_slow_monitor_bridges_its_own_interval():
    states = [state(float(5 * i), power_w=100.0) for i in range(3)]
    monitor = GpuSystemMonitor(Scripted(states), interval_s=5.0)
    monitor.begin_window()
    monitor.sample()
    assert monitor.end_window().energy_integrated_j == pytest.approx(1000.0)


def test_predictor_hears_every_sample_and_answers():
    class Spy:
        def __init__(self):
            self.heard = []

        def update(self, one):
            self.heard.append(one)

        def predict(self, horizon_s):
            return horizon_s, len(self.heard)

    monitor = GpuSystemMonitor(Scripted([state(1.0), state(2.0)]), predictor=Spy())
    monitor.sample()
    monitor.sample()
    assert monitor.predict_thermal_trajectory(7.0) == (7.0, 2)
    with pytest.raises(TelemetryError, match="ThermalPredictor"):
        GpuSystemMonitor(Scripted([state()])).predict_thermal_trajectory(1.0)


@pytest.mark.parametrize(
    ("values", "limit", "pressure"),
    [
        ({"temp_c": 59.0, "temp_slowdown_c": 89.0}, None, 0.0),
        ({"temp_c": 74.0, "temp_slowdown_c": 89.0}, None, 0.5),
        ({"temp_c": 95.0, "temp_slowdown_c": 89.0}, None, 1.0),
        ({"temp_c": 20.0, "temp_slowdown_c": 89.0}, None, 0.0),
        ({"temp_c": 44.0, "temp_slowdown_c": 89.0}, 50.0, 0.8),
        ({"temp_c": 50.0, "temp_slowdown_c": 89.0, "memory_temp_c": 80.0, "temp_memory_max_c": 95.0}, None, 0.5),
        ({"memory_temp_c": 80.0, "temp_memory_max_c": 95.0}, None, 0.5),
        ({"temp_c": 40.0, "temp_slowdown_c": 89.0, "throttle_reasons": 0x40}, None, 1.0),
        ({"temp_c": 40.0}, None, None),
        ({"temp_slowdown_c": 89.0}, None, None),
    ],
)
def test_thermal_pressure(values, limit, pressure):
    assert thermal_pressure(state(**values), limit) == (None if pressure is None else pytest.approx(pressure))


@pytest.mark.parametrize(
    ("values", "limit", "pressure"),
    [
        ({"power_w": 350.0, "power_limit_w": 700.0}, None, 0.5),
        ({"power_w": 350.0, "power_limit_w": 700.0}, 400.0, 0.875),
        ({"power_avg_w": 70.0, "power_limit_w": 700.0}, None, 0.1),
        ({"power_w": 720.0, "power_limit_w": 700.0}, None, 1.0),
        ({"power_w": 100.0, "power_limit_w": 700.0, "throttle_reasons": 0x4}, None, 1.0),
        ({"power_w": 100.0}, None, None),
        ({"power_limit_w": 700.0}, None, None),
    ],
)
def test_power_pressure(values, limit, pressure):
    assert power_pressure(state(**values), limit) == (None if pressure is None else pytest.approx(pressure))


def test_monitor_pressures_use_its_own_limits():
    monitor = GpuSystemMonitor(Scripted([state(temp_c=44.0, power_w=100.0)]), temp_limit_c=50.0, power_limit_w=200.0)
    monitor.sample()
    assert monitor.thermal_pressure == pytest.approx(0.8)
    assert monitor.power_pressure == pytest.approx(0.5)


@pytest.mark.parametrize(("interval_s", "history"), [(0.0, 10), (float("nan"), 10), (0.1, 0)])
def test_impossible_settings_are_refused(interval_s, history):
    with pytest.raises(ConfigError):
        GpuSystemMonitor(Scripted([state()]), interval_s, history)


def test_watching_at_10_hz_uses_under_one_percent_of_a_core():
    """The best of several windows counts: what shares the core with the test makes the same work take longer."""
    shares = []
    with GpuSystemMonitor(SimulatedSource(DigitalTwin(), realtime=True)) as monitor:
        watcher = next(thread for thread in threading.enumerate() if thread.name.startswith("thermoe-monitor"))
        clock = time.pthread_getcpuclockid(watcher.ident)
        time.sleep(0.2)
        while len(shares) < 10 and min(shares, default=1.0) >= 0.01:
            cpu_s, wall_s = time.clock_gettime(clock), time.monotonic()
            time.sleep(1.0)
            shares.append((time.clock_gettime(clock) - cpu_s) / (time.monotonic() - wall_s))
        assert len(monitor.history) >= 7 * len(shares)
    assert min(shares) < 0.01
