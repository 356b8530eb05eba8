"""`thermoe profile`: measure operations on this machine into a cost database."""

import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thermoe.cost.rows import DeviceKey
from thermoe.errors import ConfigError, TelemetryError
from thermoe.profiling.case import Case
from thermoe.profiling.plan import cpu_plan, h200_plan
from thermoe.profiling.sweep import SweepResult, sweep
from thermoe.types import SysState

if TYPE_CHECKING:
    import torch

EXIT_SPOILT = 75
"""A failure spoilt the process: run again with `skip_failed` to measure the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Measure what operations cost on this machine, in this process; goes on where OUT left off.

    Attributes:
        out: Cost database to write, `*.costs.json`; cases it already holds are skipped.
        ops: Only these operations; all of the plan if empty.
        minutes: Stop before this long; the plan is ordered by importance.
        device: Where to run: "auto", "cpu" or "cuda".
        skip_failed: Leave out cases that OUT records as failed.
        window_s: Length of an energy window; 5 s for figures that are published [s].
        plain: Write lines instead of a progress bar.
    """

    out: Path
    ops: tuple[str, ...] = ()
    minutes: float | None = None
    device: str = "auto"
    skip_failed: bool = False
    window_s: float = 2.0
    plain: bool = False

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device {self.device}: choose from auto, cpu, cuda")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes = {self.minutes}: needs a positive number; leave it out for no limit")
        if not self.window_s >= 2.0:
            raise ConfigError(f"window_s = {self.window_s}: needs at least 2, sensors change every 100 ms only")

    def execute(self) -> int:
        """Run the sweep; 1 if every case that was tried failed, else 0.

        A failure that spoils the process (a broken graph capture) ends the sweep in it; a fresh process
        measures the rest. Where `skip_failed` is set the caller does that, told by `EXIT_SPOILT`.
        """
        started_s = time.monotonic()
        device = _find_device(self.device)
        cases = self._plan(device.type)
        result, spoilt = self._measure(device, cases)
        sys.stderr.write(
            f"{self.out}: {result.measured} measured, {result.skipped} skipped, {result.failed} failed, "
            f"{result.left} left\n"
        )
        if spoilt and result.left:
            return EXIT_SPOILT if self.skip_failed else self._go_on_elsewhere(started_s)
        return 1 if result.failed and not result.measured and not result.skipped else 0

    def _go_on_elsewhere(self, started_s: float) -> int:
        """Measure the rest in processes of their own, a new one after each failure that spoils it."""
        code = EXIT_SPOILT
        while code == EXIT_SPOILT:
            command = [sys.executable, "-m", "thermoe.profiling", "--out", str(self.out), "--skip-failed", "--plain"]
            command += ["--device", self.device, "--window-s", str(self.window_s), "--ops", ",".join(self.ops)]
            if self.minutes is not None:
                left = self.minutes - (time.monotonic() - started_s) / 60.0
                if left <= 0:
                    return 0
                command += ["--minutes", str(left)]
            code = subprocess.run(command, check=False).returncode
        return code

    def _plan(self, device_type: str) -> list[Case]:
        plan = h200_plan() if device_type == "cuda" else cpu_plan()
        known = sorted({c.op for c in plan})
        unknown = sorted(set(self.ops) - set(known))
        if unknown:
            raise ConfigError(f"the plan has no operation {', '.join(unknown)}: choose from {', '.join(known)}")
        return [c for c in plan if not self.ops or c.op in self.ops]

    def _measure(self, device: "torch.device", cases: list[Case]) -> tuple[SweepResult, bool]:
        from thermoe.profiling.in_process import CPU_PROTOCOL, InProcess, Protocol

        read_state = _open_sensors(device)
        key = device_key(device)
        profiler = InProcess(
            device=device,
            device_key=key,
            read_state=read_state,
            protocol=CPU_PROTOCOL if device.type == "cpu" else Protocol(window_s=self.window_s),
            start_temp_c=read_state().temp_c if read_state else None,
        )

        def run(report: Callable[[int, str], None]) -> SweepResult:
            return sweep(
                cases,
                profiler.measure,
                key,
                self.out,
                minutes=self.minutes,
                skip_failed=self.skip_failed,
                usable=lambda: not profiler.spoilt,
                report=report,
            )

        if self.plain:
            result = run(lambda done, line: _write_line(f"[{done}/{len(cases)}] {line}"))
        else:
            result = _with_progress_bar(len(cases), run)
        return result, profiler.spoilt


def device_key(device: "torch.device") -> DeviceKey:
    """What the rows of this device belong to."""
    import torch

    from thermoe.profiling.operations import KERNEL_REVISION

    on_gpu = device.type == "cuda"
    return DeviceKey(
        gpu=torch.cuda.get_device_name(device) if on_gpu else f"cpu {platform.machine()}",
        driver=_driver_version() if on_gpu else "",
        torch=torch.__version__,
        triton=_version("triton"),
        kernel_revision=KERNEL_REVISION,
    )


def _find_device(name: str) -> "torch.device":
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for and torch finds no GPU: check the driver, or use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _open_sensors(device: "torch.device") -> Callable[[], SysState] | None:
    if device.type != "cuda":
        return None
    from thermoe.telemetry.nvml import NvmlSource

    try:
        return NvmlSource(device.index or 0).read
    except TelemetryError as err:
        _write_line(f"no energy will be measured: {err}")
        return None


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


def _write_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _with_progress_bar(num_cases: int, run: Callable[[Callable[[int, str], None]], SweepResult]) -> SweepResult:
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task("profiling", total=num_cases)

        def report(done: int, line: str) -> None:
            progress.update(task, completed=done)
            progress.console.print(line, markup=False, highlight=False)

        return run(report)
