"""What the hardware says now: one protocol, several sources, a monitor and a digital twin."""

from thermoe.telemetry.host import HostSource
from thermoe.telemetry.idle import IdleFigures, idle_figures
from thermoe.telemetry.monitor import GpuSystemMonitor, TrajectoryPredictor
from thermoe.telemetry.nvml import NvmlSource
from thermoe.telemetry.opening import open_source
from thermoe.telemetry.power_log import PowerLog, align_power_log, read_power_log
from thermoe.telemetry.pressure import power_pressure, thermal_pressure
from thermoe.telemetry.replay import ReplaySource
from thermoe.telemetry.scenario import ScenarioName, ThermalScenario
from thermoe.telemetry.simulated import DigitalTwin, SimulatedSource
from thermoe.telemetry.source import THROTTLE_MASK, TelemetrySource, is_throttled
from thermoe.telemetry.thermal_signal import ThermalSignalGenerator
from thermoe.telemetry.windows import EnergyWindow, WindowAccumulator

__all__ = [
    "THROTTLE_MASK",
    "DigitalTwin",
    "EnergyWindow",
    "GpuSystemMonitor",
    "HostSource",
    "IdleFigures",
    "NvmlSource",
    "PowerLog",
    "ReplaySource",
    "ScenarioName",
    "SimulatedSource",
    "TelemetrySource",
    "ThermalScenario",
    "ThermalSignalGenerator",
    "TrajectoryPredictor",
    "WindowAccumulator",
    "align_power_log",
    "idle_figures",
    "is_throttled",
    "open_source",
    "power_pressure",
    "read_power_log",
    "thermal_pressure",
]
