"""`thermoe profile`: measure operations on this machine into a cost database."""

import gc
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from thermoe.cost.database import CostDatabase
from thermoe.cost.rows import SMOKE, CostRow
from thermoe.cost.safe_file import writing_alone
from thermoe.errors import ConfigError
from thermoe.profiling.case import Case
from thermoe.profiling.kernel_tables import KERNEL_RUNNERS, profile_kernels, refuse_useless_runner
from thermoe.profiling.machine import device_key, find_device, open_sensors
from thermoe.profiling.plan import cpu_plan, gpu_plan, smoke_plan
from thermoe.profiling.sweep import Progress, SweepResult, sweep

__all__ = ["EXIT_SPOILT", "Profile", "device_key"]

if TYPE_CHECKING:
    import torch

    from thermoe.profiling.in_process import InProcess

EXIT_SPOILT = 75
"""A failure spoilt the process: run again with `skip_failed` to measure the rest."""
DEFAULT_MINUTES = 10.0
MEMORY_SHARE = 0.45  # of the device, for weights that later cases read again
RUNNERS = ("in_process", "subprocess", *KERNEL_RUNNERS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Measure what operations cost on this machine; goes on where OUT left off.

    Attributes:
        out: Cost database to write, `*.costs.json`; cases it already holds are skipped. With nsys, ncu and torch, a
            parquet file that gets a row for each kernel.
        ops: Only these operations, listed with commas or spaces; all of the plan if empty.
        minutes: Time to spend. On a GPU the plan is made for it, 10 minutes if it is not given; on a CPU the plan is
            always the same, a minute or two long, and is cut short.
        device: Where to run: "auto", "cpu" or "cuda".
        latency_only, energy_only: No energy windows, or nothing without them.
        runner: "in_process"; "subprocess" for a process of its own for every case (slow); or a profiler under which
            each case runs as a script: "nsys", "ncu", "torch".
        smoke: Every operation once, shortly, to see that it runs; the figures are of no use.
        compiled: Also formats at sizes for which Triton compiles a kernel each, which takes seconds.
        known: Other cost databases whose cases need not be measured again.
        model: Model of `thermoe fit`; cases that it is least sure of come first.
        resume: Skip what OUT holds; `--no-resume` measures it again beside what is there.
        since: With `--no-resume`, rows of this occasion and later are not measured again (UTC, as OUT has it).
        skip_failed: Leave out cases that OUT records as failed.
        window_s: Length of an energy window; 5 s for figures that are published [s].
        windows: Energy windows of each figure.
        plain: Write lines instead of a progress bar.
    """

    out: Path
    ops: tuple[str, ...] = ()
    minutes: float | None = None
    device: str = "auto"
    latency_only: bool = False
    energy_only: bool = False
    runner: str = "in_process"
    smoke: bool = False
    compiled: bool = False
    known: tuple[Path, ...] = ()
    model: Path | None = None
    resume: bool = True
    since: str = ""
    skip_failed: bool = False
    window_s: float = 2.0
    windows: int = 2
    plain: bool = False

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device {self.device}: choose from auto, cpu, cuda")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes = {self.minutes}: needs a positive number; leave it out for no limit")
        if not self.window_s >= 2.0:
            raise ConfigError(f"window_s = {self.window_s}: needs at least 2, sensors change every 100 ms only")
        if self.windows < 1:
            raise ConfigError(f"windows = {self.windows}: needs at least 1, 2 for a spread")
        if self.latency_only and self.energy_only:
            raise ConfigError("latency_only and energy_only together leave nothing to measure: choose one")
        if self.runner not in RUNNERS:
            raise ConfigError(f"runner {self.runner}: choose from {', '.join(RUNNERS)}")

    @property
    def _ops(self) -> tuple[str, ...]:
        return tuple(name.strip() for word in self.ops for name in word.split(",") if name.strip())

    def execute(self) -> int:
        """Run the sweep; 1 if every case that was tried failed, else 0.

        A failure that spoils the process (a broken graph capture) ends the sweep in it; a fresh process
        measures the rest. Where `skip_failed` is set the caller does that, told by `EXIT_SPOILT`.
        """
        started_s, occasion = time.monotonic(), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        device = find_device(self.device)
        if self.energy_only and device.type == "cpu":
            raise ConfigError("energy_only on a CPU leaves nothing to measure: there is no energy to be had there")
        if self.runner in KERNEL_RUNNERS:
            refuse_useless_runner(self.runner, self.out, device.type)
        with writing_alone(self.out):
            cases = self._plan(device.type)
            if self.runner in KERNEL_RUNNERS:
                return self._profile_kernels(cases)
            occasion = f"{SMOKE}{occasion}" if self.smoke else occasion
            result, spoilt = self._measure(device, cases, started_s, occasion)
        sys.stderr.write(
            f"{self.out}: {result.measured} measured, {result.skipped} skipped, {result.failed} failed, "
            f"{result.left} left, {time.monotonic() - started_s:.0f} s\n"
        )
        if spoilt and result.left:
            return EXIT_SPOILT if self.skip_failed else self._go_on_elsewhere(started_s, occasion)
        return 1 if result.failed and not result.measured and not result.skipped else 0

    def _profile_kernels(self, cases: list[Case]) -> int:
        def report(done: int, line: str) -> None:
            _write_line(f"[{done}/{len(cases)}] {line}")

        result = profile_kernels(cases, self.runner, self.out, minutes=self.minutes, device=self.device, report=report)
        _write_line(f"{self.out}: {result.measured} cases, {result.failed} failed, {result.left} left")
        return int(result.failed > 0 and result.measured == 0)

    def _go_on_elsewhere(self, started_s: float, occasion: str) -> int:
        """Measure the rest in processes of their own, a new one after each failure that spoils it."""
        code = EXIT_SPOILT
        while code == EXIT_SPOILT:
            command = [sys.executable, "-m", "thermoe.profiling", *self._arguments(occasion)]
            if self.minutes is not None:
                left = self.minutes - (time.monotonic() - started_s) / 60.0
                if left <= 0:
                    return 0
                command += ["--minutes", str(left)]
            code = subprocess.run(command, check=False).returncode
        return code

    def _arguments(self, occasion: str) -> list[str]:
        """What a process that measures the rest is told; it skips what failed or was measured here."""
        words = ["--out", str(self.out), "--device", self.device, "--ops", ",".join(self._ops), "--runner", self.runner]
        words += ["--window-s", str(self.window_s), "--windows", str(self.windows), "--skip-failed", "--plain"]
        words += ["--known", ",".join(map(str, self.known))]
        words += ["--model", str(self.model)] if self.model else []
        words += [] if self.resume else ["--no-resume", "--since", self.since or occasion]
        names = ("latency_only", "energy_only", "smoke", "compiled")
        return words + [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]

    def _plan(self, device_type: str) -> list[Case]:
        if device_type == "cuda" and not self.smoke:
            return self._gpu_plan()
        plan = smoke_plan(device_type) if self.smoke else cpu_plan()
        known = sorted({c.op for c in plan})
        unknown = sorted(set(self._ops) - set(known))
        if unknown:
            raise ConfigError(f"the plan has no operation {', '.join(unknown)}: choose from {', '.join(known)}")
        plan = [c for c in plan if not self._ops or c.op in self._ops]
        if not self.smoke:
            plan = self._less_known(plan)
        if self.latency_only or device_type == "cpu":
            return [replace(c, energy=False) for c in plan]
        return plan

    def _less_known(self, plan: list[Case]) -> list[Case]:
        """A fixed plan without cases that other databases hold, the least sure ones of a model first."""
        known = {row.case_key for path in self.known for row in CostDatabase.load(path).rows if not row.is_smoke}
        rest = [c for c in plan if c.key not in known]
        if self.model is None:
            return rest
        width_of = _interval_widths(self.model)
        return sorted(rest, key=lambda c: -width_of(c))

    def _gpu_plan(self) -> list[Case]:
        from thermoe.profiling.operations import OPERATIONS

        unknown = sorted(set(self._ops) - set(OPERATIONS))
        if unknown:
            raise ConfigError(f"no operation {', '.join(unknown)}: choose from {', '.join(OPERATIONS)}")
        known: list[CostRow] = []
        resumes = self.resume and self.out.exists() and self.runner not in KERNEL_RUNNERS
        for path in (*self.known, *([self.out] if resumes else [])):
            known += [row for row in CostDatabase.load(path).rows if not row.is_smoke]
        share = 0.0 if self.latency_only else 1.0 if self.energy_only else 0.65
        return gpu_plan(
            self.minutes or DEFAULT_MINUTES,
            energy_share=share,
            known=known,
            uncertainty=_interval_widths(self.model) if self.model else None,
            ops=self._ops,
            compiled=self.compiled,
        )

    def _measure(
        self, device: "torch.device", cases: list[Case], started_s: float, occasion: str
    ) -> tuple[SweepResult, bool]:
        profiler = self._profiler(device, occasion)
        measure: Callable[[Case], CostRow] = profiler.measure
        if self.runner == "subprocess":
            from thermoe.profiling.isolated import measure_isolated

            measure = measure_isolated(self.device, profiler.protocol, profiler.occasion)
        else:
            self._prepare(device, cases)
        minutes = None if self.minutes is None else max(self.minutes - (time.monotonic() - started_s) / 60.0, 1e-9)

        def run(report: Callable[[Progress], None]) -> SweepResult:
            return sweep(
                cases,
                measure,
                profiler.device_key,
                self.out,
                minutes=minutes,
                again=not self.resume,
                since=self.since,
                smoke=self.smoke,
                skip_failed=self.skip_failed,
                has_sensors=profiler.read_state is not None,
                usable=lambda: not profiler.spoilt,
                report=report,
            )

        if self.plain:
            result = run(lambda p: _write_line(f"[{p.done}/{len(cases)}{_time_left(p.left_s)}] {p.line}"))
        else:
            result = _with_progress_bar(len(cases), run)
        return result, profiler.spoilt

    def _profiler(self, device: "torch.device", occasion: str) -> "InProcess":
        import torch

        from thermoe.profiling.in_process import CPU_PROTOCOL, InProcess, Protocol, smoke_protocol

        read_state = open_sensors(device)
        protocol = CPU_PROTOCOL
        if device.type == "cuda":
            memory_bytes = torch.cuda.get_device_properties(device).total_memory * MEMORY_SHARE
            protocol = Protocol(window_s=self.window_s, windows=self.windows, memory_bytes=memory_bytes)
        return InProcess(
            device=device,
            device_key=device_key(device),
            read_state=read_state,
            protocol=smoke_protocol(protocol) if self.smoke else protocol,
            start_temp_c=read_state().temp_c if read_state else None,
            occasion=occasion,
        )

    def _prepare(self, device: "torch.device", cases: Sequence[Case]) -> None:
        from thermoe.profiling.prebuild import prebuild

        begun_s = time.monotonic()
        built = prebuild(cases, device)
        if built:
            _write_line(f"{built} kernels built ahead in {time.monotonic() - begun_s:.0f} s")
        gc.collect()
        gc.freeze()  # what the libraries hold need not be searched before every graph capture


def _interval_widths(path: Path) -> Callable[[Case], float]:
    """Relative width of a fitted model's interval for a case; wide where the model has no answer."""
    from thermoe.profiling.model_widths import interval_widths

    return interval_widths(path)


def _write_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _time_left(left_s: float | None) -> str:
    return "" if left_s is None else f", {int(left_s) // 60}:{int(left_s) % 60:02d} left"


def _with_progress_bar(num_cases: int, run: Callable[[Callable[[Progress], None]], SweepResult]) -> SweepResult:
    from rich.progress import Progress as Bar

    with Bar(transient=True) as bar:
        task = bar.add_task("profiling", total=num_cases)

        def report(progress: Progress) -> None:
            bar.update(task, completed=progress.done, description=f"profiling{_time_left(progress.left_s)}")
            bar.console.print(progress.line, markup=False, highlight=False)

        return run(report)
