"""Sensors of an NVIDIA GPU. No other file imports `pynvml` (package nvidia-ml-py)."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from thermoe.errors import TelemetryError
from thermoe.telemetry.nvml_sensors import SLOW_S, Call, Fields, Sensor
from thermoe.types import Kind, SysState

_log = logging.getLogger(__name__)

_MILLI = 1e-3
_PERCENT = 1e-2
_UNKNOWN_P_STATE = 32

# Field ids of nvmlDeviceGetFieldValues. The instant power has no classic call on boards since Ampere, where
# nvmlDeviceGetPowerUsage is itself a one-second average.
_FIELD_MEMORY_TEMP, _FIELD_ENERGY, _FIELD_POWER_AVERAGE, _FIELD_POWER_INSTANT = 82, 83, 185, 186
_FIELDS = (_FIELD_MEMORY_TEMP, _FIELD_POWER_AVERAGE, _FIELD_POWER_INSTANT)

_THRESHOLD_SHUTDOWN, _THRESHOLD_SLOWDOWN, _THRESHOLD_MEMORY = 0, 1, 2
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_SENSOR_CORE = 0


class NvmlSource:
    """One NVIDIA GPU through NVML.

    Every sensor is read by itself: one that is unsupported or fails reads `None`, and one that worked before
    and then fails is reported once through `logging`. To cost little, a read asks afresh only for what changes
    fast: power, temperatures, the reasons that hold clocks back, and the energy counter unless told otherwise.
    Utilisation, memory in use, clocks, fan, P-state and power limit may be up to a second old, as may be their
    loss. A sensor that failed is asked again after a second, one that is not supported after half a minute; board
    thresholds are read once.

    The counter is the dearest of all (4 ms of CPU time where it was measured, a thousand times the instant power),
    so that who samples ten times a second may let it grow old and `refresh` it where it matters.

    Args:
        index: NVML index of the GPU (the order of nvidia-smi, whatever CUDA_VISIBLE_DEVICES says).
        clock: Monotonic clock [s].
        counter_every_s: Age up to which the energy counter is held [s]; 0 reads it every time.

    Raises:
        TelemetryError: If there is no NVML, no driver or no GPU of that index.
    """

    kind = Kind.MEASURED

    def __init__(
        self, index: int = 0, *, clock: Callable[[], float] = time.monotonic, counter_every_s: float = 0.0
    ) -> None:
        self._nvml = _import_pynvml()
        self._handle = _open_device(self._nvml, index)
        self._clock = clock
        self._open = True
        self.index = index
        self.name = f"nvml:{index}"
        self._counter_every_s = counter_every_s
        together = _FIELDS if counter_every_s > 0 else (*_FIELDS, _FIELD_ENERGY)
        self._fields = Fields(self._nvml, self._handle, together)
        self._counter = Fields(self._nvml, self._handle, (_FIELD_ENERGY,))
        self._fast = self._fast_sensors()
        self._slow = self._slow_sensors()
        self._limits = {
            "temp_shutdown_c": self._threshold(_THRESHOLD_SHUTDOWN),
            "temp_slowdown_c": self._threshold(_THRESHOLD_SLOWDOWN),
            "temp_memory_max_c": self._threshold(_THRESHOLD_MEMORY),
        }

    def read(self) -> SysState:
        """The sensors now; those that change slowly may be up to a second old.

        Raises:
            TelemetryError: After `close`.
        """
        if not self._open:
            raise TelemetryError(f"{self.name} is closed: open a new source")
        now_s, wall_time_s = self._clock(), time.time()
        self._fields.refresh(now_s)
        fast, slow = self._fast, self._slow
        utilization = slow["utilization"].read(now_s)
        state = slow["performance_state"].integer(now_s)
        return SysState(
            time_s=now_s,
            wall_time_s=wall_time_s,
            source=self.name,
            kind=self.kind,
            temp_c=fast["temp_c"].number(now_s),
            memory_temp_c=fast["memory_temp_c"].number(now_s),
            power_w=fast["power_w"].number(now_s, _MILLI),
            power_avg_w=fast["power_avg_w"].number(now_s, _MILLI),
            energy_j=fast["energy_j"].number(now_s, _MILLI),
            gpu_util=None if utilization is None else utilization.gpu * _PERCENT,
            memory_util=None if utilization is None else utilization.memory * _PERCENT,
            memory_used_bytes=slow["memory_used_bytes"].integer(now_s),
            sm_clock_mhz=slow["sm_clock_mhz"].number(now_s),
            memory_clock_mhz=slow["memory_clock_mhz"].number(now_s),
            fan_speed=slow["fan_speed"].number(now_s, _PERCENT),
            performance_state=None if state == _UNKNOWN_P_STATE else state,
            throttle_reasons=fast["throttle_reasons"].integer(now_s),
            power_limit_w=slow["power_limit_w"].number(now_s, _MILLI),
            **self._limits,
        )

    def identity(self) -> tuple[str | None, str | None]:
        """UUID and PCI bus of the GPU, to join its log with other programs' files; `None` where NVML is silent."""
        nvml, handle = self._nvml, self._handle
        uuid = Call(nvml, lambda: nvml.nvmlDeviceGetUUID(handle))(self._clock())
        bus = Call(nvml, lambda: nvml.nvmlDeviceGetPciInfo(handle).busId)(self._clock())
        as_text = [value.decode() if isinstance(value, bytes) else value for value in (uuid, bus)]
        return as_text[0], as_text[1]

    def refresh(self) -> None:
        """Have the next read ask for the energy counter, however young the last value is."""
        self._fast["energy_j"].expire()

    def close(self) -> None:
        """Let go of NVML; may be called twice."""
        if self._open:
            self._open = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as error:
                _log.debug("nvmlShutdown failed: %s", error)

    def _fast_sensors(self) -> dict[str, Sensor]:
        """Fields come first: the one call for all of them is made anyway."""
        nvml, handle, fields = self._nvml, self._handle, self._fields
        ways: dict[str, list[Callable[[], Any]]] = {
            "temp_c": [
                lambda: nvml.nvmlDeviceGetTemperatureV(handle, _SENSOR_CORE),
                lambda: nvml.nvmlDeviceGetTemperature(handle, _SENSOR_CORE),
            ],
            "memory_temp_c": [lambda: fields.values.get(_FIELD_MEMORY_TEMP)],
            "power_w": [lambda: fields.values.get(_FIELD_POWER_INSTANT)],
            "power_avg_w": [
                lambda: fields.values.get(_FIELD_POWER_AVERAGE),
                lambda: nvml.nvmlDeviceGetPowerUsage(handle),
            ],
            "energy_j": [self._counter_field, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)],
            "throttle_reasons": [
                lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
                lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
            ],
        }
        ages = {"energy_j": self._counter_every_s}
        return {name: self._sensor(name, asks, ages.get(name, 0.0)) for name, asks in ways.items()}

    def _counter_field(self) -> Any:
        """The energy counter's field: out of the one call for all, or by a call of its own where it is held."""
        if self._counter_every_s <= 0:
            return self._fields.values.get(_FIELD_ENERGY)
        self._counter.refresh(self._clock())
        return self._counter.values.get(_FIELD_ENERGY)

    def _slow_sensors(self) -> dict[str, Sensor]:
        nvml, handle = self._nvml, self._handle
        ways: dict[str, Callable[[], Any]] = {
            "utilization": lambda: nvml.nvmlDeviceGetUtilizationRates(handle),
            "memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, _CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, _CLOCK_MEMORY),
            "fan_speed": lambda: nvml.nvmlDeviceGetFanSpeed(handle),
            "performance_state": lambda: nvml.nvmlDeviceGetPerformanceState(handle),
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle),
        }
        return {name: self._sensor(name, [ask], SLOW_S) for name, ask in ways.items()}

    def _sensor(self, name: str, asks: Sequence[Callable[[], Any]], every_s: float = 0.0) -> Sensor:
        return Sensor(f"{self.name} {name}", [Call(self._nvml, ask) for ask in asks], every_s)

    def _threshold(self, threshold: int) -> float | None:
        ask = Call(self._nvml, lambda: self._nvml.nvmlDeviceGetTemperatureThreshold(self._handle, threshold))
        value = ask(self._clock())
        return None if value is None else float(value)


def _import_pynvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise TelemetryError(f"NVML needs the package nvidia-ml-py ({error}): pip install nvidia-ml-py") from None
    return pynvml


def index_of_ordinal(ordinal: int, uuid: object) -> int:
    """NVML index of a CUDA device: NVML counts all GPUs, CUDA those that CUDA_VISIBLE_DEVICES leaves, in its order.

    Args:
        ordinal: Index of the CUDA device, the answer where NVML does not know its UUID.
        uuid: What torch says its UUID is, with or without "GPU-"; None where it does not say.

    Raises:
        TelemetryError: If there is no NVML or no driver.
    """
    if uuid is None:
        return ordinal
    nvml = _import_pynvml()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise TelemetryError(f"NVML cannot be used here ({error}): install an NVIDIA driver") from None
    try:
        return int(nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleByUUID(f"GPU-{str(uuid).removeprefix('GPU-')}")))
    except (nvml.NVMLError, AttributeError) as error:
        _log.warning("NVML does not know the CUDA device %d (%s): its index is taken for NVML's", ordinal, error)
        return ordinal
    finally:
        nvml.nvmlShutdown()


def _open_device(nvml: Any, index: int) -> Any:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise TelemetryError(
            f"NVML cannot be used here ({error}): install an NVIDIA driver, or choose 'simulated' as telemetry"
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
