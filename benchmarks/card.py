"""The machine that a benchmark ran on, what its card gives today, and the files that hold the results."""

import csv
import importlib.metadata
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import thermoe
from benchmarks.windows import Sample
from thermoe.errors import TelemetryError
from thermoe.profiling.command import device_key
from thermoe.profiling.draw import Draw
from thermoe.profiling.loop import CudaLoop
from thermoe.telemetry.nvml import NvmlSource, index_of_ordinal
from thermoe.types import SysState

SCHEMA_VERSION = 1
CALIBRATION_S = 1.0
COPY_BYTES = 1 << 32
MATMUL_SIZE = 8192


def find_device(name: str) -> torch.device:
    """The device asked for; "auto" is the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def open_sensors(device: torch.device, counter_every_s: float = 0.0) -> NvmlSource | None:
    """The GPU's sensors; None on a CPU, or with a word about it where NVML does not answer.

    `counter_every_s`: how often the energy counter is asked for, 0 at every reading [s].
    """
    if device.type != "cuda":
        return None
    try:
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        return NvmlSource(index_of_ordinal(device.index or 0, uuid), counter_every_s=counter_every_s)
    except TelemetryError as err:
        print(f"no energy will be measured: {err}")
        return None


def describe(device: torch.device, read: Callable[[], SysState] | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The `env` of a results file, without the calibration."""
    key = device_key(device)
    state = read() if read else None
    return {
        "gpu": key.gpu,
        "driver": key.driver,
        "torch": key.torch,
        "triton": key.triton,
        "transformers": _version("transformers"),
        "thermoe": thermoe.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "power_limit_w": state.power_limit_w if state else None,
        "temp_c_at_start": state.temp_c if state else None,
        "kind": "measured",
        "settings": settings,
    }


def calibrate(device: torch.device) -> dict[str, float] | None:
    """Copy bandwidth [TB/s] and bf16 matrix product [TFLOP/s], each kept up for a second; None on a CPU."""
    if device.type != "cuda":
        return None
    figures = {"copy_tb_s": round(_copy_tb_s(device), 4), "matmul_tflop_s": round(_matmul_tflop_s(device), 2)}
    torch.cuda.empty_cache()
    return figures


def _copy_tb_s(device: torch.device) -> float:
    source = Draw(device, torch.bfloat16).normal(COPY_BYTES // 2)
    target = torch.empty_like(source)
    copies, took_s = CudaLoop(lambda: target.copy_(source)).sustain(CALIBRATION_S, lambda: None)
    return 2.0 * COPY_BYTES * copies / took_s / 1e12


def _matmul_tflop_s(device: torch.device) -> float:
    draw = Draw(device, torch.bfloat16)
    a, b = draw.normal(MATMUL_SIZE, MATMUL_SIZE), draw.weights(MATMUL_SIZE, MATMUL_SIZE)
    out = torch.empty_like(a)
    products, took_s = CudaLoop(lambda: torch.mm(a, b, out=out)).sustain(CALIBRATION_S, lambda: None)
    return 2.0 * MATMUL_SIZE**3 * products / took_s / 1e12


def write_results(
    folder: Path, env: dict[str, Any], rows: Sequence[dict[str, Any]], samples: Sequence[Sample], **more: Any
) -> None:
    """Write `results.json` and `samples.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"schema": SCHEMA_VERSION, "env": env, "rows": list(rows), **more}
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Sample.__slots__))
        writer.writeheader()
        writer.writerows(sample.as_dict() for sample in samples)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
