"""Runs an experiment: strategies x workloads x seeds, interleaved, recorded batch by batch, resumable."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from thermoe.adaptation import Targets, refuse_below_idle
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.experiments import calibration, environment
from thermoe.experiments.arms import Arm, interleaved
from thermoe.experiments.boards import Boards
from thermoe.experiments.calibration import CALIBRATION_FILE
from thermoe.experiments.config import RunConfig
from thermoe.experiments.progress import RunProgress, telling
from thermoe.experiments.session import BatchSession
from thermoe.experiments.silence import SilenceWatch
from thermoe.experiments.store import CONFIG_FILE, RunStore
from thermoe.experiments.tasks import Task, build_task
from thermoe.experiments.tracing import maybe_traced
from thermoe.routing.calibration import Calibration
from thermoe.runtime.control_plane import ControlPlane
from thermoe.types import RoutingStrategy


def run_experiment(config: RunConfig, out: Path, console: Console) -> Path:
    """Run from the start into a new folder, to the end of its tables; what they say is for `thermoe.analysis` to tell.

    Raises:
        ThermoeError: Anything the user can mend; the folder is made only when all of the input has been read.
    """
    config = with_baseline(config, console)
    RunStore.refuse_taken(out)
    with _prepared(config) as run:
        calibrated = run.calibrated(console)
        run.quantise(console)
        arms = run.arms(calibrated)
        env = environment.describe(config, run.boards.kind, run.boards.priced_name, config.model or "moe_stack")
        store = RunStore.create(out, config.to_toml(), env)
        _keep(calibrated, store)
        run.batches(arms, store, console)
    return out


def resume_experiment(folder: Path, console: Console) -> Path:
    """Go on with an interrupted run, as if it had never stopped; a finished one is left as it is."""
    store = RunStore.open(folder)
    config = RunConfig.from_toml(folder / CONFIG_FILE)
    if not store.is_joined:
        with _prepared(config) as run:
            calibrated = calibration.kept(folder, run.task.model) or run.calibrated(console)
            _keep(calibrated, store)
            run.quantise(console)
            run.batches(run.arms(calibrated), store, console)
    return folder


def with_baseline(config: RunConfig, console: Console) -> RunConfig:
    """The run with `baseline` in it, which every change is measured against."""
    if RoutingStrategy.BASELINE in config.resolved_strategies:
        return config
    console.print("notice: baseline is added, changes are measured against it", highlight=False)
    return replace(config, strategies=(str(RoutingStrategy.BASELINE), *config.strategies))


def _keep(calibrated: Calibration | None, store: RunStore) -> None:
    if calibrated is not None:
        store.write_text(CALIBRATION_FILE, json.dumps(calibrated.to_dict()))


@contextmanager
def _prepared(config: RunConfig) -> Iterator["_Prepared"]:
    cost_model = KernelCostModel.load(Path(config.cost_model)) if config.cost_model else KernelCostModel.shipped()
    task = build_task(config)
    boards = Boards(config, task.shape)
    try:
        if RoutingStrategy.KERNEL_AWARE_TTHA in config.resolved_strategies:
            targets = Targets.of(config.budget(), dict(config.settings_of(RoutingStrategy.KERNEL_AWARE_TTHA)))
            refuse_below_idle(targets, boards.idle)  # before minutes are spent on a calibration
        yield _Prepared(config, task, boards, cost_model)
    finally:
        boards.close()
        task.close()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A run whose model, texts, sensors and cost model have been opened."""

    config: RunConfig
    task: Task
    boards: Boards
    cost_model: KernelCostModel

    def calibrated(self, console: Console) -> Calibration | None:
        """The calibration that the strategies need, if any; to be asked for before a runner is."""
        return calibration.obtain(self.config, self.task.model, self.task.tokenizer, console)

    def quantise(self, console: Console) -> None:
        """Have the model compute with the experts asked for; calibration has seen its own."""
        if self.config.experts is not None:
            with telling(console, "quantising") as progress:
                self.task.quantise(self.config.experts, progress)

    def arms(self, calibrated: Calibration | None) -> list[Arm]:
        """All arms at their beginning."""
        return [
            self._arm(name, seed, strategy, calibrated)
            for name in self.task.workloads
            for seed in self.config.seeds
            for strategy in self.config.resolved_strategies
        ]

    def batches(self, arms: list[Arm], store: RunStore, console: Console) -> None:
        """Run every batch that is not finished yet, put each on disk, and join them all."""
        for arm in arms:
            if arm.name in store.arm_states:
                arm.load_state(store.arm_states[arm.name])
        watch, total = SilenceWatch(), sum(arm.num_batches for arm in arms)
        with RunProgress(console, total, len(store.finished)) as progress:
            for arm, index in interleaved(arms, store.finished):
                progress.begin(*arm.name, index)
                with maybe_traced(self.config.trace and index == 0, store.path, arm):
                    tables = self._session(arm, progress.tick).run(arm.workload.batch(index % len(arm.workload)), index)
                watch.look(arm.name, tables["telemetry"])
                store.append(arm.key(index), tables)
                progress.finish(tables["batches"][0]["num_tokens"])
        store.join()

    def _session(self, arm: Arm, tick: Callable[[], None]) -> BatchSession:
        return BatchSession(
            arm,
            self.task.runner(arm.seed),
            self.cost_model,
            self.boards.priced_as,
            control_steps=self.config.control_steps,
            # Repetitions would not wait for arrivals: an open loop is measured once, however short.
            window_s=0.0 if self.config.arrival_rate else self.config.window_s,
            tick=tick,
        )

    def _arm(self, name: str, seed: int, strategy: str, calibrated: Calibration | None) -> Arm:
        workload, runner = self.task.workloads[name](seed), self.task.runner(seed)
        sizes = [runner.steps_of(workload.batch(i)) for i in range(len(workload))]
        num_steps, tokens = self.config.passes * sum(steps for steps, _ in sizes), max(tokens for _, tokens in sizes)
        plane = ControlPlane(
            strategy=RoutingStrategy(strategy),
            shape=self.task.shape,
            cost_model=self.cost_model,
            priced_as=self.boards.priced_as,
            budget=self.config.budget(),
            settings=self.config.settings_of(strategy),
            calibration=calibrated,
            bits=runner.bits,
        )
        return Arm(
            workload_name=name,
            workload=workload,
            seed=seed,
            strategy=strategy,
            board=self.boards.board(seed, num_steps, tokens),
            plane=plane,
            passes=self.config.passes,
        )
