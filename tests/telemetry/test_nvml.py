"""The NVML source against a stand-in for its library."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fake_nvml import FakeNvml, NotSupportedError, NVMLError, h200

from thermoe.errors import TelemetryError
from thermoe.telemetry import GpuSystemMonitor, NvmlSource
from thermoe.telemetry.nvml import index_of_ordinal
from thermoe.types import Kind


@pytest.fixture
def nvml(monkeypatch):
    fake = h200()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def read_for(source, clock, nvml, seconds):
    """States and device calls of each read at 10 Hz."""
    states, calls = [], []
    for _ in range(round(10 * seconds)):
        clock.now_s += 0.1
        nvml.asked.clear()
        states.append(source.read())
        calls.append([name for name in nvml.asked if isinstance(name, str)])
    return states, calls


FAST = [
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetCurrentClocksEventReasons",
]


def test_every_reading_in_its_si_unit(nvml):
    state = NvmlSource(1).read()

    assert state.source == "nvml:1"
    assert state.kind is Kind.MEASURED
    assert state.power_w == pytest.approx(691.125)
    assert state.power_avg_w == pytest.approx(598.25)
    assert state.energy_j == pytest.approx(12_345_678.901)
    assert state.temp_c == 55.0
    assert state.memory_temp_c == 47.0
    assert state.gpu_util == pytest.approx(0.97)
    assert state.memory_util == pytest.approx(0.41)
    assert state.memory_used_bytes == 57_982_058_496
    assert (state.sm_clock_mhz, state.memory_clock_mhz) == (1980.0, 3201.0)
    assert state.performance_state == 0
    assert state.throttle_reasons == 0x4
    assert state.power_limit_w == pytest.approx(700.0)
    assert (state.temp_slowdown_c, state.temp_shutdown_c, state.temp_memory_max_c) == (89.0, 95.0, 95.0)
    assert state.fan_speed is None


def test_zero_is_a_reading(nvml):
    nvml.fields[186] = (1, 0)
    nvml.answers["nvmlDeviceGetFanSpeed"] = 0
    state = NvmlSource().read()
    assert state.power_w == 0.0
    assert state.fan_speed == 0.0


@pytest.mark.parametrize(
    ("value_type", "value"),
    [(0, 250_500.0), (1, 4_000_000_000), (2, 9_000_000), (3, 2**40), (4, 2**41), (5, 70_000), (6, 65_535)],
)
def test_field_values_are_read_by_their_type(nvml, value_type, value):
    nvml.fields[83] = (value_type, value)
    assert NvmlSource().read().energy_j == pytest.approx(value / 1000.0)


def test_an_unknown_value_type_is_no_reading(nvml):
    nvml.nvmlDeviceGetFieldValues = lambda _handle, ids: [
        type("Value", (), {"fieldId": i, "nvmlReturn": 0, "valueType": 42, "value": None}) for i in ids
    ]
    assert NvmlSource().read().power_w is None


def test_old_drivers_answer_through_the_classic_calls(nvml):
    nvml.fields = NVMLError("Function Not Found")
    nvml.answers |= {"nvmlDeviceGetPowerUsage": 81_000, "nvmlDeviceGetTotalEnergyConsumption": 4_500}
    del nvml.answers["nvmlDeviceGetCurrentClocksEventReasons"]
    nvml.answers["nvmlDeviceGetCurrentClocksThrottleReasons"] = 0x1
    state = NvmlSource().read()

    assert state.power_avg_w == pytest.approx(81.0)
    assert state.power_w is None  # the classic call is an average: it must not pass for the instant power
    assert state.energy_j == pytest.approx(4.5)
    assert state.memory_temp_c is None
    assert state.throttle_reasons == 0x1


def test_the_newer_temperature_call_is_preferred(nvml):
    nvml.answers["nvmlDeviceGetTemperatureV"] = 61
    assert NvmlSource().read().temp_c == 61.0


def test_a_board_without_any_sensor_reads_none_everywhere_and_warns_of_nothing(monkeypatch, caplog):
    fake = FakeNvml()
    fake.thresholds, fake.clocks = {}, {}
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    source = NvmlSource()
    values = [source.read().as_dict() for _ in range(3)][-1]
    silent = {k: v for k, v in values.items() if k not in ("time_s", "wall_time_s", "source", "kind")}
    assert set(silent.values()) == {None}
    assert caplog.records == []


def test_a_sensor_that_vanishes_is_reported_once_and_comes_back(nvml, caplog):
    clock = Clock()
    source = NvmlSource(clock=clock)
    assert source.read().power_w is not None
    nvml.codes[186] = 999
    nvml.answers["nvmlDeviceGetTemperature"] = NVMLError("GPU is lost")
    with caplog.at_level(logging.WARNING):
        lost, _ = read_for(source, clock, nvml, 0.4)

    assert all(s.power_w is None and s.temp_c is None for s in lost)
    assert all(s.power_avg_w is not None and s.sm_clock_mhz == 1980.0 for s in lost)
    messages = [r.getMessage() for r in caplog.records]
    assert sum("power_w" in m for m in messages) == 1
    assert sum("temp_c" in m and "GPU is lost" in m for m in messages) == 1
    assert len(messages) == 2

    del nvml.codes[186]
    nvml.answers["nvmlDeviceGetTemperature"] = 56
    states, _ = read_for(source, clock, nvml, 1.2)
    assert states[0].power_w == pytest.approx(691.125)
    assert (states[0].temp_c, states[-1].temp_c) == (None, 56.0)


def test_a_fast_read_makes_three_calls_and_a_slow_one_ten_at_most(nvml):
    nvml.answers["nvmlDeviceGetTemperatureV"] = 61
    clock = Clock()
    source = NvmlSource(clock=clock)
    _, calls = read_for(source, clock, nvml, 31.5)
    assert len(calls[0]) == 10
    assert sorted(calls[1]) == sorted(FAST)
    counts = [len(names) for names in calls]
    assert set(counts) <= {3, 9, 10}  # the fan is not supported: asked every 30 s
    assert sum(n == 10 for n in counts) == 2
    assert sum(n > 3 for n in counts) in (29, 30, 31, 32)
    assert sum("nvmlDeviceGetTemperatureThreshold" in names for names in calls) == 0


def test_what_changes_fast_is_fresh_in_every_read_and_what_changes_slowly_within_a_second(nvml):
    clock = Clock()
    source = NvmlSource(clock=clock)
    source.read()
    nvml.fields |= {186: (1, 1000), 185: (1, 2000), 83: (3, 3000), 82: (1, 40)}
    nvml.answers |= {
        "nvmlDeviceGetTemperature": 41,
        "nvmlDeviceGetCurrentClocksEventReasons": 0x20,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=1, memory=2),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3),
        "nvmlDeviceGetPerformanceState": 4,
        "nvmlDeviceGetEnforcedPowerLimit": 300_000,
    }
    nvml.clocks = {1: 1500, 2: 2600}
    states, _ = read_for(source, clock, nvml, 1.1)
    soon, late = states[0], states[-1]
    assert (soon.power_w, soon.power_avg_w, soon.energy_j) == (1.0, 2.0, 3.0)
    assert (soon.temp_c, soon.memory_temp_c, soon.throttle_reasons) == (41.0, 40.0, 0x20)
    assert (soon.gpu_util, soon.memory_used_bytes, soon.performance_state) == (0.97, 57_982_058_496, 0)
    assert (soon.sm_clock_mhz, soon.memory_clock_mhz, soon.power_limit_w) == (1980.0, 3201.0, 700.0)
    assert (late.gpu_util, late.memory_util, late.memory_used_bytes, late.performance_state) == (0.01, 0.02, 3, 4)
    assert (late.sm_clock_mhz, late.memory_clock_mhz, late.power_limit_w) == (1500.0, 2600.0, 300.0)
    assert soon.time_s == pytest.approx(1000.1)


def test_a_held_energy_counter_is_asked_for_seldom_and_when_told_to(nvml):
    clock = Clock()
    source = NvmlSource(clock=clock, counter_every_s=2.0)
    first = source.read()
    nvml.fields |= {186: (1, 1000), 83: (3, 3000)}
    states, calls = read_for(source, clock, nvml, 1.9)
    assert {s.energy_j for s in states} == {first.energy_j}
    assert {s.power_w for s in states} == {1.0}
    assert sum(names.count("nvmlDeviceGetFieldValues") for names in calls) == len(states)
    states, calls = read_for(source, clock, nvml, 0.2)
    assert states[-1].energy_j == 3.0
    assert sum(names.count("nvmlDeviceGetFieldValues") for names in calls) == len(states) + 1
    nvml.fields[83] = (3, 4000)
    assert source.read().energy_j == 3.0
    source.refresh()
    assert source.read().energy_j == 4.0


def test_an_energy_window_over_a_held_counter_has_fresh_ends(nvml):
    clock = Clock()
    monitor = GpuSystemMonitor(NvmlSource(clock=clock, counter_every_s=60.0))
    monitor.sample()
    for energy_mj, window in (
        (10_000, monitor.begin_window),
        (16_000, monitor.peek_window),
        (19_000, monitor.end_window),
    ):
        clock.now_s += 1.0
        nvml.fields[83] = (3, energy_mj)
        found = window()
    assert found.energy_counter_j == pytest.approx(9.0)


def test_a_slow_sensor_that_fails_is_none_by_its_next_refresh_and_reported_once(nvml, caplog):
    clock = Clock()
    source = NvmlSource(clock=clock)
    source.read()
    nvml.answers["nvmlDeviceGetEnforcedPowerLimit"] = NVMLError("GPU is lost")
    states, _ = read_for(source, clock, nvml, 5)
    assert [s.power_limit_w for s in states[:9]] == [700.0] * 9
    assert {s.power_limit_w for s in states[10:]} == {None}
    assert sum("power_limit_w" in r.getMessage() for r in caplog.records) == 1
    nvml.answers["nvmlDeviceGetEnforcedPowerLimit"] = 650_000
    states, _ = read_for(source, clock, nvml, 1.2)
    assert states[-1].power_limit_w == 650.0


def test_what_is_not_supported_is_asked_again_every_half_minute(nvml):
    del nvml.fields[82]
    clock = Clock()
    source = NvmlSource(clock=clock)
    source.read()
    nvml.fields[82] = (1, 44)
    nvml.answers["nvmlDeviceGetFanSpeed"] = 30
    states, calls = read_for(source, clock, nvml, 29.8)
    assert {(s.memory_temp_c, s.fan_speed) for s in states} == {(None, None)}
    assert not any("nvmlDeviceGetFanSpeed" in names for names in calls)
    states, _ = read_for(source, clock, nvml, 1.5)
    assert (states[-1].memory_temp_c, states[-1].fan_speed) == (44.0, pytest.approx(0.3))


def test_fields_that_no_driver_answers_are_not_asked_for(nvml):
    nvml.fields = {}
    clock = Clock()
    source = NvmlSource(clock=clock)
    source.read()
    _, calls = read_for(source, clock, nvml, 5)
    assert not any("nvmlDeviceGetFieldValues" in names for names in calls)


def test_an_unknown_performance_state_is_none(nvml):
    nvml.answers["nvmlDeviceGetPerformanceState"] = 32
    assert NvmlSource().read().performance_state is None


def test_closing_twice_lets_go_once_and_reading_after_it_is_refused(nvml):
    source = NvmlSource()
    assert nvml.opened == 1
    source.close()
    source.close()
    assert nvml.opened == 0
    with pytest.raises(TelemetryError, match="closed"):
        source.read()


def test_no_driver_no_gpu_and_no_package_are_one_clear_line(nvml, monkeypatch):
    with pytest.raises(TelemetryError, match="no GPU of NVML index 2: this machine has 2"):
        NvmlSource(2)
    assert nvml.opened == 0
    nvml.answers["nvmlDeviceGetHandleByIndex"] = None
    nvml.nvmlDeviceGetHandleByIndex = lambda _index: (_ for _ in ()).throw(NotSupportedError("GPU is lost"))
    with pytest.raises(TelemetryError, match="nvidia-smi"):
        NvmlSource(0)
    assert nvml.opened == 0
    nvml.init_error = NVMLError("Driver Not Loaded")
    with pytest.raises(TelemetryError, match="or choose 'simulated' as telemetry") as caught:
        NvmlSource()
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)  # it is raised from Python as well
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(TelemetryError, match="nvidia-ml-py"):
        NvmlSource()


def test_importing_the_package_imports_neither_nvml_nor_zeus_and_starts_no_thread():
    code = (
        "import sys, threading, thermoe.telemetry; "
        "print(sorted({'pynvml', 'zeus', 'torch', 'pandas', 'pyarrow'} & set(sys.modules)), threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "1"]


def test_the_gpu_is_named_by_uuid_and_bus_where_nvml_tells(nvml):
    nvml.answers["nvmlDeviceGetUUID"] = "GPU-da169147-ab12-6528-f15a-7efd8bb7efbe"
    nvml.answers["nvmlDeviceGetPciInfo"] = SimpleNamespace(busId=b"00000000:3B:00.0")
    assert NvmlSource(0).identity() == ("GPU-da169147-ab12-6528-f15a-7efd8bb7efbe", "00000000:3B:00.0")
    nvml.answers["nvmlDeviceGetUUID"] = NotSupportedError("Not Supported")
    del nvml.answers["nvmlDeviceGetPciInfo"]
    assert NvmlSource(0).identity() == (None, None)


def test_a_cuda_device_is_found_by_its_uuid(nvml):
    nvml.answers |= {"nvmlDeviceGetHandleByUUID": "handle 3", "nvmlDeviceGetIndex": 3}
    assert index_of_ordinal(0, "da169147-ab12-6528-f15a-7efd8bb7efbe") == 3
    assert index_of_ordinal(1, None) == 1
    nvml.answers["nvmlDeviceGetHandleByUUID"] = NotSupportedError("Not Found")
    assert index_of_ordinal(1, "GPU-da169147-ab12-6528-f15a-7efd8bb7efbe") == 1
    assert nvml.opened == 0
