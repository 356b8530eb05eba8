"""The NVML source against a stand-in for its library."""

import logging
import subprocess
import sys

import pytest
from fake_nvml import FakeNvml, NotSupportedError, NVMLError, h200

from thermoe.errors import TelemetryError
from thermoe.telemetry import NvmlSource
from thermoe.types import Kind


@pytest.fixture
def nvml(monkeypatch):
    fake = h200()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


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
    source = NvmlSource()
    assert source.read().power_w is not None
    field = nvml.fields.pop(186)
    nvml.answers["nvmlDeviceGetTemperature"] = NVMLError("GPU is lost")
    with caplog.at_level(logging.WARNING):
        lost = [source.read() for _ in range(4)]

    assert all(s.power_w is None and s.temp_c is None for s in lost)
    assert all(s.power_avg_w is not None and s.sm_clock_mhz == 1980.0 for s in lost)
    messages = [r.getMessage() for r in caplog.records]
    assert sum("power_w" in m for m in messages) == 1
    assert sum("temp_c" in m and "GPU is lost" in m for m in messages) == 1
    assert len(messages) == 2

    nvml.fields[186] = field
    assert source.read().power_w == pytest.approx(691.125)


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
    with pytest.raises(TelemetryError, match="--telemetry simulated") as caught:
        NvmlSource()
    assert "\n" not in str(caught.value)
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
