"""One batch of one arm: forwards go in, steps are accounted for, the control plane acts, rows come out."""

import time
from collections.abc import Callable
from typing import Any

from thermoe.experiments.arms import Arm
from thermoe.experiments.forwards import Forward, Runner
from thermoe.experiments.records import BatchRecorder, StepRecord
from thermoe.experiments.tally import Tally
from thermoe.runtime.control_plane import Observation
from thermoe.types import Kind, MoEShape, StepOutcome, StepWork
from thermoe.workloads import Batch

_MOST_REPEATS = 1000


class BatchSession:
    """Runs one batch of an arm and collects the rows of all four tables.

    Forwards are kept as they are on the device until a control period is full or the batch ends, so
    that a GPU is not made to wait for the host in between.

    Args:
        arm: The arm; its knobs, board and step count move on.
        runner: What computes the batch.
        cost_model: Predicts each step.
        priced_as: Shape under which steps are predicted.
        control_steps: Steps between two updates of the control plane.
        window_s: Least length of a measured energy window; fixed arms repeat the batch to reach it.
        tick: Called after every forward.
    """

    def __init__(
        self,
        arm: Arm,
        runner: Runner,
        cost_model: Any,
        priced_as: MoEShape,
        *,
        control_steps: int,
        window_s: float,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.arm, self.runner, self.cost_model, self.priced_as = arm, runner, cost_model, priced_as
        self._measured = arm.board.kind is not Kind.SIMULATED
        self._window_s, self._tick = window_s, tick
        self._period_steps = control_steps
        self._pending: list[Forward] = []
        self._repeat = 0

    def run(self, batch: Batch, index: int) -> dict[str, list[dict[str, Any]]]:
        """Compute the batch; rows by table, without the key."""
        self._begin()
        started_wall_s, begin_s = time.time(), time.perf_counter()
        self.arm.board.begin()
        self.runner.run(batch, self, self._positions())
        self._flush()
        wall_s = time.perf_counter() - begin_s
        repeats = 1 + self._repeat_until_long_enough(batch)
        figures = self.arm.board.end(repeats)
        overhead_s = self.arm.plane.overhead_s - self._overhead_before_s
        row = self._recorder.batch_row(figures, self.tally, self.arm.board.kind) | {
            "bits_mean": self.runner.bits,
            "routing_overhead_s": self._routing_s,
            "adaptation_overhead_s": overhead_s,
            "wall_s": wall_s,
            "started_wall_s": started_wall_s,
            "arm_state": self.arm.state_json(),
        }
        return {
            "batches": [row],
            "steps": self._recorder.step_rows(),
            "experts": self._recorder.expert_rows(self.tally),
            "telemetry": [state.as_dict() for state in figures.samples],
        }

    def before_forward(self) -> None:
        """Let the board wait for tokens that have not arrived yet."""
        if self._repeat == 0:
            self.arm.board.before_forward(self.arm.next_step + sum(f.num_steps for f in self._pending))

    def after_forward(self, forward: Forward) -> None:
        """Keep the forward; act when a control period is full."""
        self._tick()
        if self._repeat:
            return
        self._pending.append(forward)
        if not self.arm.is_fixed and sum(f.num_steps for f in self._pending) >= self._period_steps:
            self._flush()

    def _begin(self) -> None:
        self._recorder = BatchRecorder()
        self.tally = Tally(self.runner.shape)
        self._pending, self._repeat = [], 0
        self._overhead_before_s = self.arm.plane.overhead_s
        self._last_s = 0.0
        self.runner.set_knobs(self.arm.plane.knobs)
        self.runner.drain()
        self.runner.routing_s()

    def _positions(self) -> int | None:
        """Positions of one forward: a decode step where it is measured, a control period where knobs may change."""
        if self._measured:
            return 1
        return None if self.arm.is_fixed else self._period_steps

    def _flush(self) -> None:
        """Account for the forwards of this period, show them to the control plane, and set its knobs."""
        if not self._pending:
            return
        records = [record for forward in self._pending for record in self._account(forward)]
        self._pending = []
        statistics = self.runner.drain()
        self.tally.add(statistics)
        now_s = self.arm.board.elapsed_s()
        latencies = [r.figures.latency_s for r in records]
        knobs = self.arm.plane.update(
            Observation(
                state=records[-1].figures.state,
                statistics=statistics,
                num_tokens=sum(r.num_tokens for r in records),
                num_steps=len(records),
                latency_s=sum(x or 0.0 for x in latencies),
                energy_j=_energy_of(records, now_s - self._last_s, self.arm.board.kind),
                period_s=now_s - self._last_s,
                predicted_energy_j=sum(r.predicted.energy_j for r in records),
                predicted_latency_s=sum(r.predicted.latency_s for r in records),
            )
        )
        self._last_s = now_s
        self._recorder.add(records, dict(self.arm.plane.terms))
        self.runner.set_knobs(knobs)

    def _account(self, forward: Forward) -> list[StepRecord]:
        distinct_LC, rows_LC, mass_LC = forward.counts()
        nll_C = forward.nll()
        latency_s = forward.latency_s() / forward.num_steps
        works = [
            StepWork(
                shape=self.runner.shape,
                num_tokens=forward.tokens_per_step,
                distinct_experts=distinct_LC[:, column].tolist(),
                routed_rows=rows_LC[:, column].tolist(),
                bits=self.runner.bits,
            )
            for column in range(forward.num_steps)
        ]
        records = []
        for column, work in enumerate(works):
            figures = self.arm.board.step(self.arm.next_step, work, latency_s)
            predicted: StepOutcome = self.cost_model.predict_step(work, self.priced_as, figures.state)
            records.append(
                StepRecord(
                    step=self.arm.next_step,
                    figures=figures,
                    predicted=predicted,
                    num_tokens=forward.results_per_step,
                    nll=None if nll_C is None else float(nll_C[column]),
                    distinct_L=distinct_LC[:, column],
                    mass_L=mass_LC[:, column],
                )
            )
            self.arm.next_step += 1
        return records

    def _repeat_until_long_enough(self, batch: Batch) -> int:
        """Further runs of the same batch inside the open window; their steps are not recorded."""
        self._routing_s = self.runner.routing_s()
        if self.arm.board.kind is not Kind.MEASURED or not self.arm.is_fixed:
            return 0
        while self.arm.board.elapsed_s() < self._window_s and self._repeat < _MOST_REPEATS:
            self._repeat += 1
            self.runner.run(batch, self, self._positions())
        self.runner.drain()  # waits for the device, so that the window holds all of the work
        return self._repeat


def _energy_of(records: list[StepRecord], period_s: float, kind: Kind) -> float | None:
    """Energy of a control period [J]: the sum of its steps, or by the last power reading where sensors are slower."""
    known = [r.figures.energy_j for r in records if r.figures.energy_j is not None]
    if len(known) == len(records):
        return sum(known)
    state = records[-1].figures.state
    if state is None or kind is not Kind.MEASURED:
        return None
    power_w = state.power_w if state.power_w is not None else state.power_avg_w
    return None if power_w is None else power_w * period_s
