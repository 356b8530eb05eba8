"""Sensors of an NVIDIA GPU. No other file imports `pynvml` (package nvidia-ml-py)."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from thermoe.errors import TelemetryError
from thermoe.types import Kind, SysState

_log = logging.getLogger(__name__)

_MILLI = 1e-3
_PERCENT = 1e-2
_UNKNOWN_P_STATE = 32

# Field ids of nvmlDeviceGetFieldValues. The instant power has no classic call on boards since Ampere, where
# nvmlDeviceGetPowerUsage is itself a one-second average.
_FIELD_MEMORY_TEMP, _FIELD_ENERGY, _FIELD_POWER_AVERAGE, _FIELD_POWER_INSTANT = 82, 83, 185, 186
_FIELDS = (_FIELD_MEMORY_TEMP, _FIELD_ENERGY, _FIELD_POWER_AVERAGE, _FIELD_POWER_INSTANT)

#: Member of the value union by NVML value type.
_UNION_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

_THRESHOLD_SHUTDOWN, _THRESHOLD_SLOWDOWN, _THRESHOLD_MEMORY = 0, 1, 2
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_SENSOR_CORE = 0


class NvmlSource:
    """One NVIDIA GPU through NVML.

    Every sensor is read by itself: one that is unsupported or fails reads `None`, and one that
    worked before and then fails is reported once through `logging`.

    Args:
        index: NVML index of the GPU (the order of nvidia-smi, whatever CUDA_VISIBLE_DEVICES says).

    Raises:
        TelemetryError: If there is no NVML, no driver or no GPU of that index.
    """

    kind = Kind.MEASURED

    def __init__(self, index: int = 0) -> None:
        self._nvml = _import_pynvml()
        self._handle = _open_device(self._nvml, index)
        self._open = True
        self.index = index
        self.name = f"nvml:{index}"
        self._worked: set[str] = set()
        self._reported: set[str] = set()
        self._limits = {
            "temp_shutdown_c": self._threshold(_THRESHOLD_SHUTDOWN),
            "temp_slowdown_c": self._threshold(_THRESHOLD_SLOWDOWN),
            "temp_memory_max_c": self._threshold(_THRESHOLD_MEMORY),
        }

    def read(self) -> SysState:
        """The sensors now.

        Raises:
            TelemetryError: After `close`.
        """
        if not self._open:
            raise TelemetryError(f"{self.name} is closed: open a new source")
        time_s, wall_time_s = time.monotonic(), time.time()
        nvml, handle = self._nvml, self._handle
        fields = self._field_values()
        utilization = self._sensor("utilization", [lambda: nvml.nvmlDeviceGetUtilizationRates(handle)])
        return SysState(
            time_s=time_s,
            wall_time_s=wall_time_s,
            source=self.name,
            kind=self.kind,
            temp_c=self._number("temp_c", self._core_temperature_calls()),
            memory_temp_c=self._number("memory_temp_c", [lambda: fields[_FIELD_MEMORY_TEMP]]),
            power_w=self._number("power_w", [lambda: fields[_FIELD_POWER_INSTANT]], _MILLI),
            power_avg_w=self._number(
                "power_avg_w",
                [lambda: fields[_FIELD_POWER_AVERAGE], lambda: nvml.nvmlDeviceGetPowerUsage(handle)],
                _MILLI,
            ),
            energy_j=self._number(
                "energy_j",
                [lambda: fields[_FIELD_ENERGY], lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)],
                _MILLI,
            ),
            gpu_util=None if utilization is None else utilization.gpu * _PERCENT,
            memory_util=None if utilization is None else utilization.memory * _PERCENT,
            memory_used_bytes=self._integer("memory_used_bytes", [lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used]),
            sm_clock_mhz=self._number("sm_clock_mhz", [lambda: nvml.nvmlDeviceGetClockInfo(handle, _CLOCK_SM)]),
            memory_clock_mhz=self._number(
                "memory_clock_mhz", [lambda: nvml.nvmlDeviceGetClockInfo(handle, _CLOCK_MEMORY)]
            ),
            fan_speed=self._number("fan_speed", [lambda: nvml.nvmlDeviceGetFanSpeed(handle)], _PERCENT),
            performance_state=self._performance_state(),
            throttle_reasons=self._integer(
                "throttle_reasons",
                [
                    lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
                    lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
                ],
            ),
            power_limit_w=self._number("power_limit_w", [lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle)], _MILLI),
            **self._limits,
        )

    def close(self) -> None:
        """Let go of NVML; may be called twice."""
        if self._open:
            self._open = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as error:
                _log.debug("nvmlShutdown failed: %s", error)

    def _sensor(self, name: str, calls: Sequence[Callable[[], Any]]) -> Any:
        """The first call that answers, or `None`; a sensor lost mid-run is reported once."""
        reason: object = "no value"
        for call in calls:
            try:
                value = call()
            except (self._nvml.NVMLError, AttributeError, KeyError) as error:  # no such call, or no such field
                reason = str(error)
                continue
            if value is not None:
                self._worked.add(name)
                return value
        if name in self._worked and name not in self._reported:
            self._reported.add(name)
            _log.warning("%s: sensor %s stopped working (%s); it reads None from now on", self.name, name, reason)
        return None

    def _number(self, name: str, calls: Sequence[Callable[[], Any]], scale: float = 1.0) -> float | None:
        value = self._sensor(name, calls)
        return None if value is None else float(value) * scale

    def _integer(self, name: str, calls: Sequence[Callable[[], Any]]) -> int | None:
        value = self._sensor(name, calls)
        return None if value is None else int(value)

    def _field_values(self) -> dict[int, float]:
        """Values of the fields that answered, by id."""
        try:
            answers = self._nvml.nvmlDeviceGetFieldValues(self._handle, list(_FIELDS))
        except (self._nvml.NVMLError, AttributeError):
            return {}
        return {
            answer.fieldId: getattr(answer.value, _UNION_MEMBERS[answer.valueType])
            for answer in answers
            if answer.nvmlReturn == 0 and answer.valueType < len(_UNION_MEMBERS)
        }

    def _core_temperature_calls(self) -> list[Callable[[], Any]]:
        nvml, handle = self._nvml, self._handle
        return [
            lambda: nvml.nvmlDeviceGetTemperatureV(handle, _SENSOR_CORE),
            lambda: nvml.nvmlDeviceGetTemperature(handle, _SENSOR_CORE),
        ]

    def _performance_state(self) -> int | None:
        state = self._integer("performance_state", [lambda: self._nvml.nvmlDeviceGetPerformanceState(self._handle)])
        return None if state == _UNKNOWN_P_STATE else state

    def _threshold(self, threshold: int) -> float | None:
        name = f"temperature threshold {threshold}"
        return self._number(name, [lambda: self._nvml.nvmlDeviceGetTemperatureThreshold(self._handle, threshold)])


def _import_pynvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise TelemetryError(f"NVML needs the package nvidia-ml-py ({error}): pip install nvidia-ml-py") from None
    return pynvml


def _open_device(nvml: Any, index: int) -> Any:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise TelemetryError(
            f"NVML cannot be used here ({error}): install an NVIDIA driver, or choose --telemetry simulated"
        ) from None
    try:
        count = nvml.nvmlDeviceGetCount()
        if not 0 <= index < count:
            raise TelemetryError(f"no GPU of NVML index {index}: this machine has {count}, counted from 0")
        return nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        nvml.nvmlShutdown()
        raise TelemetryError(f"GPU {index} does not answer NVML ({error}): check nvidia-smi") from None
    except TelemetryError:
        nvml.nvmlShutdown()
        raise
