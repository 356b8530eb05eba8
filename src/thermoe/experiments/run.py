"""Runs an experiment: strategies x workloads x seeds, interleaved, recorded batch by batch, resumable."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from thermoe.cost import KernelCostModel
from thermoe.experiments import calibration, environment
from thermoe.experiments.arms import Arm, interleaved
from thermoe.experiments.boards import Boards
from thermoe.experiments.conclude import conclude
from thermoe.experiments.config import RunConfig
from thermoe.experiments.progress import RunProgress
from thermoe.experiments.session import BatchSession
from thermoe.experiments.store import CONFIG_FILE, RunStore
from thermoe.experiments.tasks import Task, build_task
from thermoe.experiments.tracing import maybe_traced
from thermoe.runtime.control_plane import ControlPlane
from thermoe.types import RoutingStrategy


def run_experiment(config: RunConfig, out: Path, console: Console, *, report: bool = True) -> Path:
    """Run from the start into a new folder.

    Raises:
        ThermoeError: Anything the user can mend; nothing is written before models and texts are read.
    """
    config = with_baseline(config, console)
    RunStore.refuse_taken(out)
    with _prepared(config) as (task, boards):
        env = environment.describe(config, boards.kind, boards.priced_name, config.model or "moe_stack")
        store = RunStore.create(out, config.to_toml(), env)
        _go_on(config, store, task, boards, console)
    conclude(store, csv=config.csv, report=report, console=console)
    return out


def resume_experiment(folder: Path, console: Console, *, report: bool = True) -> Path:
    """Go on with an interrupted run, as if it had never stopped; a finished one is summarised again."""
    store = RunStore.open(folder)
    config = RunConfig.from_toml(folder / CONFIG_FILE)
    if not store.is_joined:
        with _prepared(config) as (task, boards):
            _go_on(config, store, task, boards, console)
    conclude(store, csv=config.csv, report=report, console=console)
    return folder


def with_baseline(config: RunConfig, console: Console) -> RunConfig:
    """The run with `baseline` in it, which every change is measured against."""
    if RoutingStrategy.BASELINE in config.strategies:
        return config
    console.print("notice: baseline is added, changes are measured against it", highlight=False)
    return replace(config, strategies=(str(RoutingStrategy.BASELINE), *config.strategies))


@contextmanager
def _prepared(config: RunConfig) -> Iterator[tuple[Task, Boards]]:
    task = build_task(config)
    boards = Boards(config, task.shape)
    try:
        yield task, boards
    finally:
        boards.close()
        for seed in config.seeds:
            task.runner(seed).close()


def _go_on(config: RunConfig, store: RunStore, task: Task, boards: Boards, console: Console) -> None:
    cost_model = KernelCostModel.load(config.cost_model) if config.cost_model else KernelCostModel.shipped()
    calibrated = calibration.obtain(config, task.model, task.tokenizer, store, console)
    arms = _build_arms(config, task, boards, cost_model, calibrated)
    for arm in arms:
        if arm.name in store.arm_states:
            arm.load_state(store.arm_states[arm.name])
    total = sum(arm.num_batches for arm in arms)
    with RunProgress(console, total, len(store.finished)) as progress:
        for arm, index in interleaved(arms, store.finished):
            progress.begin(*arm.name, index)
            session = BatchSession(
                arm,
                task.runner(arm.seed),
                cost_model,
                boards.priced_as,
                control_steps=config.control_steps,
                window_s=config.window_s,
            )
            with maybe_traced(config.trace and index == 0, store.path, arm):
                tables = session.run(arm.workload.batch(index % len(arm.workload)), index)
            store.append(arm.key(index), tables)
            progress.finish(tables["batches"][0]["num_tokens"])
    store.join()


def _build_arms(config: RunConfig, task: Task, boards: Boards, cost_model: Any, calibrated: Any) -> list[Arm]:
    arms = []
    for name, build in task.workloads.items():
        for seed in config.seeds:
            workload, runner = build(seed), task.runner(seed)
            sizes = [runner.steps_of(workload.batch(i)) for i in range(len(workload))]
            num_steps, tokens = config.passes * sum(steps for steps, _ in sizes), max(tokens for _, tokens in sizes)
            for strategy in config.strategies:
                plane = ControlPlane(
                    strategy=RoutingStrategy(strategy),
                    shape=task.shape,
                    cost_model=cost_model,
                    priced_as=boards.priced_as,
                    budget=config.budget(),
                    settings=config.settings_of(strategy),
                    calibration=calibrated,
                )
                arms.append(
                    Arm(
                        workload_name=name,
                        workload=workload,
                        seed=seed,
                        strategy=strategy,
                        board=boards.board(seed, num_steps, tokens),
                        plane=plane,
                        passes=config.passes,
                    )
                )
    return arms
