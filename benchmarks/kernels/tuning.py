"""K5: which launch configuration to freeze, by microseconds, joules or their product.

All candidates are timed; joules take two seconds each, so only the fastest few get them. A configuration whose
result is wrong, or that does not run, is out.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from benchmarks.kernels.cell import Cell, layers_needed
from benchmarks.kernels.floors import REFERENCE_CARD, expert_mlp_work
from benchmarks.kernels.registry import OWN, Entry, Run
from benchmarks.kernels.results import energy_mj
from benchmarks.kernels.timing import Arm, prepare, sustain_arms, time_arms, verify
from benchmarks.windows import ReadState
from thermoe.errors import ConfigError, CostError

Settings = Mapping[str, Any]
BuildWith = Callable[[Cell, str, int, Settings], Run]
ARMS_AT_ONCE = 12  # captured side by side


class Objective(StrEnum):
    """What a frozen choice is the least of."""

    TIME = "time"
    ENERGY = "energy"
    ENERGY_DELAY = "energy-delay"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One configuration: microseconds and millijoules of a layer; joules None where they were not measured."""

    settings: dict[str, Any]
    latency_us: float
    energy_mj: float | None = None

    def cost(self, objective: Objective) -> float:
        """What is to be least; infinite where it is not known."""
        if objective is Objective.TIME:
            return self.latency_us
        if self.energy_mj is None:
            return float("inf")
        return self.energy_mj * (self.latency_us if objective is Objective.ENERGY_DELAY else 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much to spend: rounds of timing, finalists that get energy windows of so many seconds, and a limit [s]."""

    rounds: int = 3
    finalists: int = 4
    seconds: float = 2.0
    limit_s: float = float("inf")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """All that was measured at one size, the choice, and how many candidates were out or not reached."""

    measured: tuple[Measured, ...]
    objective: Objective
    rejected: int
    not_reached: int

    @property
    def chosen(self) -> Measured:
        """The least by the objective."""
        return self.best(self.objective)

    def best(self, objective: Objective) -> Measured:
        """The least by any objective.

        Raises:
            CostError: Joules were asked for and none were measured.
        """
        found = min(self.measured, key=lambda m: m.cost(objective))
        if found.cost(objective) == float("inf"):
            raise CostError(f"no configuration has the energy that objective {objective} needs: tune with a GPU")
        return found

    def disagreement(self) -> str | None:
        """Where the thriftiest configuration is not the fastest: both, in a line; None where they are one."""
        if all(m.energy_mj is None for m in self.measured):
            return None
        fast, thrifty = self.best(Objective.TIME), self.best(Objective.ENERGY)
        if fast.settings == thrifty.settings:
            return None
        return (
            f"fastest {fast.latency_us:.4g} us {fast.energy_mj or 0:.4g} mJ {fast.settings}; "
            f"thriftiest {thrifty.latency_us:.4g} us {thrifty.energy_mj or 0:.4g} mJ {thrifty.settings}"
        )


def tune(
    cell: Cell,
    dtype: str,
    candidates: Sequence[Settings],
    build: BuildWith,
    *,
    objective: Objective,
    effort: Effort,
    read: ReadState | None,
) -> Tuned:
    """Measure candidates on a cell.

    Raises:
        ConfigError: Joules are wanted and there are no sensors, or no candidate runs and is right.
    """
    if objective is not Objective.TIME and read is None:
        raise ConfigError(f"objective {objective} needs a GPU's sensors: take time, or run where NVML answers")
    deadline_s = time.monotonic() + effort.limit_s
    measured: list[Measured] = []
    reached = 0
    for batch in _batches(candidates):
        if time.monotonic() > deadline_s:
            break
        arms = [arm for settings in batch if (arm := _arm(cell, dtype, settings, build)) is not None]
        measured += _timed(arms, effort.rounds)
        reached += len(batch)
        _forget(arms)
    if not measured:
        raise ConfigError(f"none of {reached} configurations ran and was right on {dtype}, {cell.num_tokens} tokens")
    ranked = sorted(measured, key=lambda m: m.latency_us)
    finals = _finals(cell, dtype, ranked[: effort.finalists], build, effort, read) if read else []
    rest = ranked[effort.finalists :] if finals else ranked
    return Tuned(
        measured=(*finals, *rest),
        objective=objective,
        rejected=reached - len(measured),
        not_reached=len(candidates) - reached,
    )


def _batches(candidates: Sequence[Settings]) -> Iterator[Sequence[Settings]]:
    for start in range(0, len(candidates), ARMS_AT_ONCE):
        yield candidates[start : start + ARMS_AT_ONCE]


def _arm(cell: Cell, dtype: str, settings: Settings, build: BuildWith) -> Arm | None:
    """A captured arm with the right result, or None."""

    def build_it(cell: Cell, dtype: str, num_layers: int) -> Run:
        return build(cell, dtype, num_layers, settings)

    entry = Entry(op="expert_mlp", impl=OWN, dtypes=(dtype,), build=build_it)
    distinct = cell.distinct_experts(1)
    num_layers = layers_needed(cell.shape, dtype, distinct, cell.device)
    floor_us = expert_mlp_work(cell.shape, dtype, cell.num_tokens, distinct).floor_us(REFERENCE_CARD, dtype)
    try:
        arm = prepare(entry, cell, dtype, num_layers, floor_us)
        verdict = verify(arm)
    except Exception as err:  # noqa: BLE001 - a configuration that does not compile or fit is merely out
        print(f"out: {dict(settings)}: {type(err).__name__}: {' '.join(str(err).split())[:200]}")
        return None
    if verdict.wrong:
        print(f"out: {dict(settings)}: {verdict.wrong}")
        return None
    arm.settings = dict(settings)
    return arm


def _timed(arms: Sequence[Arm], rounds: int) -> list[Measured]:
    time_arms(arms, rounds)
    return [Measured(settings=arm.settings, latency_us=arm.median_us()) for arm in arms]


def _finals(
    cell: Cell, dtype: str, ranked: Sequence[Measured], build: BuildWith, effort: Effort, read: ReadState | None
) -> list[Measured]:
    """The fastest few once more, side by side, with joules."""
    arms = [arm for m in ranked if (arm := _arm(cell, dtype, m.settings, build)) is not None]
    time_arms(arms, effort.rounds)
    sustain_arms(arms, effort.seconds, 1, read)
    finals = [
        Measured(settings=arm.settings, latency_us=arm.median_us(), energy_mj=energy_mj(arm.windows)) for arm in arms
    ]
    _forget(arms)
    return sorted(finals, key=lambda m: m.latency_us)


def _forget(arms: list[Arm]) -> None:
    arms.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
