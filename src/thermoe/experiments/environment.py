"""What a run ran on, for env.json."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import thermoe
from thermoe.experiments.config import RunConfig
from thermoe.types import Kind

_PACKAGES = ("torch", "transformers", "triton", "numpy", "pyarrow", "nvidia-ml-py")


def describe(config: RunConfig, kind: Kind, priced_as: str, model: str) -> dict[str, Any]:
    """Machine, versions, revision, seeds and the kind of telemetry; what cannot be found is None."""
    return {
        "telemetry": str(kind),
        "priced_as": priced_as,
        "model": model,
        "experts": config.experts if config.is_text else config.expert_type,
        "seeds": list(config.seeds),
        "gpu": _gpu(config) if config.device == "cuda" else None,
        "board": "digital twin of an NVIDIA H200" if kind is Kind.SIMULATED else None,
        "cpu": _cpu(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "thermoe": thermoe.__version__,
        "versions": {name: _version(name) for name in _PACKAGES},
        "git_revision": _git_revision(),
    }


def _gpu(config: RunConfig) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {"name": properties.name, "memory_bytes": properties.total_memory}
    found["cuda"] = torch.version.cuda
    return found | driver_and_limit()


def driver_and_limit() -> dict[str, Any]:
    """Driver and power limit as nvidia-smi tells them, without opening the sensors a second time."""
    command = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader,nounits", "--id=0"]
    said = _output(command)
    if said is None or "," not in said:
        return {"driver": None, "power_limit_w": None}
    driver, limit = (part.strip() for part in said.split(",", 1))
    return {"driver": driver, "power_limit_w": float(limit) if limit.replace(".", "", 1).isdigit() else None}


def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Revision of the source tree that runs; None for an installed package."""
    root = Path(thermoe.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    revision = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return None if revision is None else revision + ("+changes" if changed else "")


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
