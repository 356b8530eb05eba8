"""Which device is measured, and what its costs belong to."""

import importlib.metadata
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from thermoe.cost.rows import DeviceKey
from thermoe.errors import ConfigError, TelemetryError
from thermoe.types import SysState

if TYPE_CHECKING:
    import torch


def device_key(device: "torch.device") -> DeviceKey:
    """What the rows of this device belong to."""
    import torch

    from thermoe.profiling.operations import KERNEL_REVISION

    on_gpu = device.type == "cuda"
    return DeviceKey(
        gpu=torch.cuda.get_device_name(device) if on_gpu else f"cpu {_processor_name()}",
        driver=_driver_version() if on_gpu else "",
        torch=torch.__version__,
        triton=_version("triton"),
        kernel_revision=KERNEL_REVISION,
    )


def find_device(name: str) -> "torch.device":
    """The device asked for: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises:
        ConfigError: cuda was asked for and is not there.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for and torch finds no GPU: check the driver, or use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def open_sensors(device: "torch.device") -> Callable[[], SysState] | None:
    """Reads the GPU's sensors; None on a CPU, and where NVML does not answer, which is told on stderr."""
    if device.type != "cuda":
        return None
    import torch

    from thermoe.telemetry.nvml import NvmlSource, index_of_ordinal

    try:
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        return NvmlSource(index_of_ordinal(device.index or 0, uuid)).read
    except TelemetryError as err:
        sys.stderr.write(f"no energy will be measured: {err}\n")
        return None


def _processor_name() -> str:
    """Product name where the system tells it, else the architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _driver_version() -> str:
    path = Path("/proc/driver/nvidia/version")
    if not path.exists():
        return ""
    words = path.read_text(encoding="utf-8").split()
    return next((w for w in words if w.count(".") >= 1 and w.replace(".", "").isdigit()), "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
