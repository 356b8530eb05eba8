"""Cell after cell: build the arms, check them, time them in turn, write what is known so far."""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.kernels.cell import CPU_LAYERS, SHAPES, SMALL_OP_LAYERS, Cell, WeightStore, layers_needed
from benchmarks.kernels.floors import Card
from benchmarks.kernels.registry import Entry, UnavailableError
from benchmarks.kernels.results import SUSTAINED_TOKENS, Row, row_line, row_of, set_bank_targets, work_of
from benchmarks.kernels.timing import Arm, prepare, sustain_arms, time_arms, verify
from benchmarks.windows import ReadState

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to run and how long.

    Attributes:
        entries, shapes, formats, tokens: What spans the table; `formats` applies to operations that read weights.
        rounds: Passes over all arms of a cell.
        energy: Whether every arm that includes its plan gets sustained windows beside the sensors.
        seconds, windows: Length of a sustained window, and how many an arm gets.
    """

    entries: Sequence[Entry]
    shapes: Sequence[str]
    formats: Sequence[str]
    tokens: Sequence[int]
    rounds: int = 5
    energy: bool = False
    seconds: float = 2.0
    windows: int = 1


@dataclass(slots=True)
class Found:
    """Rows and what was left out, so far."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[Row] = field(default_factory=list)


class Runner:
    """Runs a plan on one device."""

    def __init__(self, plan: Plan, device: torch.device, card: Card, read: ReadState | None, say: Say) -> None:
        self._plan, self._device, self._card, self._read, self._say = plan, device, card, read, say
        self.found = Found()

    def run(self, after_cell: Callable[[Found], None]) -> None:
        """All cells; `after_cell` may write what was found."""
        ops = list(dict.fromkeys(entry.op for entry in self._plan.entries))
        for name in self._plan.shapes:
            store = WeightStore(SHAPES[name], self._device)
            for tokens, op in itertools.product(self._plan.tokens, ops):
                if op == "dequantize" and tokens != self._plan.tokens[0]:
                    continue  # it does not depend on the tokens
                alive = self._survived(Cell(name, tokens, self._device, store), op)
                after_cell(self.found)
                if not alive:
                    return

    def _survived(self, cell: Cell, op: str) -> bool:
        """Run a cell; False where the device does not answer any more, as after an illegal access."""
        try:
            self._run_cell(cell, op)
            self._forget()
        except RuntimeError as err:
            reason = " ".join(str(err).split())
            self._say(f"{op} {cell.shape_name} T={cell.num_tokens} was given up: {reason}")
            self.found.skipped.append(
                {"op": op, "shape_name": cell.shape_name, "tokens": cell.num_tokens, "reason": reason}
            )
            return self._answers()
        return True

    def _answers(self) -> bool:
        try:
            self._forget()
        except RuntimeError:
            self._say("the device does not answer any more: what was measured so far is in the file")
            return False
        return True

    def _run_cell(self, cell: Cell, op: str) -> None:
        started_s = time.monotonic()
        arms = [arm for entry, dtype in self._wanted(op) if (arm := self._prepared(entry, cell, dtype)) is not None]
        right = [arm for arm in arms if arm.verdict is not None and arm.verdict.wrong is None]
        if right:
            time_arms(right, self._plan.rounds)
            sustained = [arm for arm in right if self._sustained(arm)]
            sustain_arms(sustained, self._plan.seconds, self._plan.windows, self._read)
        rows = [row_of(arm, self._card) for arm in arms]
        set_bank_targets(rows)
        for row in rows:
            self._say(row_line(row))
        self._say(f"-- {op} {cell.shape_name} T={cell.num_tokens}: {time.monotonic() - started_s:.1f} s")
        self.found.rows += rows

    def _wanted(self, op: str) -> Iterator[tuple[Entry, str]]:
        for entry in self._plan.entries:
            if entry.op == op:
                reads_weights = op in ("expert_mlp", "dequantize")
                for dtype in entry.dtypes:
                    if dtype in self._plan.formats or not reads_weights:
                        yield entry, dtype

    def _prepared(self, entry: Entry, cell: Cell, dtype: str) -> Arm | None:
        """A checked arm; None, with a line about it, where it cannot run."""
        num_layers = self._num_layers(entry, cell, dtype)
        floor_us = work_of(entry, cell, dtype, cell.distinct_experts(1)).floor_us(self._card, dtype)
        try:
            arm = prepare(entry, cell, dtype, num_layers, floor_us)
            verify(arm)
        except UnavailableError as err:
            self._skip(entry, cell, dtype, str(err))
        except Exception as err:  # noqa: BLE001 - one broken implementation must not cost the others their rows
            self._skip(entry, cell, dtype, f"{type(err).__name__}: {err}")
            self._forget()  # raises where it broke the device too
        else:
            return arm
        return None

    def _num_layers(self, entry: Entry, cell: Cell, dtype: str) -> int:
        if self._device.type != "cuda":
            return CPU_LAYERS
        if entry.op == "expert_mlp":
            return layers_needed(cell.shape, dtype, cell.distinct_experts(1), self._device)
        return 2 if entry.op == "dequantize" else SMALL_OP_LAYERS

    def _skip(self, entry: Entry, cell: Cell, dtype: str, reason: str) -> None:
        reason = " ".join(reason.split())
        self._say(f"{entry.label} {dtype} {cell.shape_name} T={cell.num_tokens}: skipped: {reason[:300]}")
        self.found.skipped.append(
            {
                "op": entry.op,
                "impl": entry.impl,
                "shape_name": cell.shape_name,
                "dtype": dtype,
                "tokens": cell.num_tokens,
                "plan_included": entry.plan_included,
                "reason": reason,
            }
        )

    def _sustained(self, arm: Arm) -> bool:
        long = arm.cell.num_tokens >= SUSTAINED_TOKENS and arm.entry.op == "expert_mlp"
        return (long and self._plan.energy) or ((long or self._plan.energy) and arm.entry.plan_included)

    def _forget(self) -> None:
        """Give graphs and their memory back before the next cell."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
