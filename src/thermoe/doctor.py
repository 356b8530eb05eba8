"""`thermoe doctor`: what works on this machine, looked at and not assumed.

A finding never stops the others: what is missing is said, and the exit code stays 0.
"""

import json
import platform
import re
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import thermoe
from thermoe.errors import ThermoeError

# First and last release that is tested, as (major, minor).
SUPPORTED: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "python": ((3, 11), (3, 12)),
    "torch": ((2, 11), (2, 13)),
    "triton": ((3, 6), (3, 9)),
    "transformers": ((5, 17), (5, 23)),
}

EXTRAS: dict[str, tuple[str, ...]] = {
    "fit": ("sklearn",),
    "report": ("matplotlib", "jinja2", "plotly"),
    "zeus": ("zeus",),
    "train": ("tokenizers",),
}


@dataclass(frozen=True)
class Doctor:
    """Say what works on this machine: versions, sensors, extras, model families, cost data.

    Attributes:
        json: Print JSON instead of tables.
    """

    json: bool = False

    def execute(self) -> int:
        """Print the findings; always 0."""
        findings = examine()
        if self.json:
            print(json.dumps(findings, indent=2))
        else:
            _show(findings)
        return 0


def examine() -> dict[str, Any]:
    """All findings as JSON values: `thermoe`, `versions`, `cuda`, `compiler`, `nvml`, `extras`, `families`, `costs`."""
    return {
        "thermoe": thermoe.__version__,
        "versions": {name: judge_version(name, _installed(name)) for name in SUPPORTED},
        "cuda": _cuda(),
        "compiler": _compiler(),
        "nvml": _nvml(),
        "extras": {name: _missing(packages) for name, packages in EXTRAS.items()},
        "families": _families(),
        "costs": _cost_databases(),
    }


def judge_version(name: str, installed: str | None) -> dict[str, str | None]:
    """Compare an installed version with the tested range.

    Returns `installed`, `tested` ("2.11-2.13") and `verdict` ("ok" | "missing" | "too old" | "newer than tested").
    """
    first, last = SUPPORTED[name]
    verdict = "missing"
    if installed is not None:
        numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:2])
        verdict = "too old" if numbers < first else "newer than tested" if numbers > last else "ok"
    return {"installed": installed, "tested": f"{first[0]}.{first[1]}-{last[0]}.{last[1]}", "verdict": verdict}


def _installed(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cuda() -> dict[str, Any]:
    """What torch sees: `devices` (names), and `why` where there are none."""
    try:
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except (ImportError, RuntimeError) as err:  # a broken installation is a finding
        return {"devices": [], "why": _one_line(err)}
    built_for = torch.version.cuda
    why = None if names else "no GPU visible to torch" if built_for else "this torch is built without CUDA"
    return {"devices": names, "why": why}


def _compiler() -> str | None:
    """What builds the CUDA C++ kernels, without which Triton's do their work."""
    try:
        from thermoe.kernels.cuda_build import compiler_name
    except ImportError:  # no torch
        return None
    return compiler_name()


def _nvml() -> dict[str, Any]:
    """The sensors of GPU 0: name of each `SysState` field -> its value, None where the sensor is silent."""
    from thermoe.telemetry.nvml import NvmlSource

    try:
        state = NvmlSource(0).read()
    except ThermoeError as err:
        return {"sensors": {}, "why": _one_line(err)}
    not_sensors = {"time_s", "wall_time_s", "source", "kind"}
    return {"sensors": {k: v for k, v in state.as_dict().items() if k not in not_sensors}, "why": None}


def _missing(packages: tuple[str, ...]) -> list[str]:
    return [package for package in packages if find_spec(package) is None]


def _families() -> list[str]:
    try:
        from thermoe.integrations.families import FAMILIES
    except ImportError:  # no torch: nothing can be attached to
        return []
    return sorted(FAMILIES)


def _cost_databases() -> list[str]:
    shipped = resources.files("thermoe.cost.data").iterdir()
    return sorted(entry.name for entry in shipped if entry.name.endswith(".json"))


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())


def _show(findings: dict[str, Any]) -> None:
    console = Console()
    console.print(f"thermoe {findings['thermoe']}", highlight=False)
    versions = Table("package", "installed", "tested", "verdict", title="Versions", title_justify="left")
    for name, found in findings["versions"].items():
        note = " (needed on a GPU only)" if name == "triton" and found["verdict"] == "missing" else ""
        versions.add_row(name, found["installed"] or "-", found["tested"], found["verdict"] + note)
    console.print(versions)
    _show_sensors(console, findings["nvml"])
    table = Table(show_header=False)
    cuda = findings["cuda"]
    table.add_row("GPU for models", ", ".join(cuda["devices"]) or f"none: {cuda['why']}")
    table.add_row(
        "CUDA compiler",
        findings["compiler"] or "none: without NVRTC or nvcc a GPU gets Triton's kernels, which are slower",
    )
    for extra, missing in findings["extras"].items():
        remedy = f"missing {', '.join(missing)}: pip install 'thermoe[{extra}]'" if missing else "installed"
        table.add_row(f"extra {extra}", escape(remedy))
    table.add_row("model families", ", ".join(findings["families"]) or "none: torch cannot be imported")
    table.add_row("shipped cost data", ", ".join(findings["costs"]) or "none: costs come from the roofline")
    console.print(table)


def _show_sensors(console: Console, nvml: dict[str, Any]) -> None:
    if nvml["why"] is not None:
        console.print(f"NVML sensors: none ({nvml['why']})", markup=False, highlight=False, soft_wrap=True)
        return
    sensors = Table("sensor", "reading", title="NVML sensors of GPU 0", title_justify="left")
    for name, value in nvml["sensors"].items():
        sensors.add_row(name, "silent" if value is None else f"{value:g}")
    console.print(sensors)
