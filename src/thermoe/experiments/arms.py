"""One arm of an experiment: a strategy on a workload with a seed, its board and its control plane."""

import json
from dataclasses import dataclass
from typing import Any

from thermoe.experiments.board import Board
from thermoe.experiments.choices import FIXED_STRATEGIES
from thermoe.experiments.store import BatchKey
from thermoe.runtime.control_plane import ControlPlane
from thermoe.workloads import Workload


@dataclass(kw_only=True, slots=True)
class Arm:
    """A strategy on a workload with a seed; `next_step` counts on through all its batches."""

    workload_name: str
    workload: Workload
    seed: int
    strategy: str
    board: Board
    plane: ControlPlane
    passes: int = 1
    next_step: int = 0

    @property
    def num_batches(self) -> int:
        """Batches of the arm, all passes together."""
        return self.passes * len(self.workload)

    @property
    def is_fixed(self) -> bool:
        """Whether the knobs cannot change during the run."""
        return self.strategy in FIXED_STRATEGIES

    @property
    def name(self) -> tuple[str, int, str]:
        """Workload, seed and strategy."""
        return self.workload_name, self.seed, self.strategy

    def key(self, batch_index: int) -> BatchKey:
        """Key of one of the arm's batches."""
        return BatchKey(*self.name, batch_index)

    def state_json(self) -> str:
        """What the arm needs to go on after its last batch."""
        return json.dumps({"step": self.next_step, "board": self.board.state_dict(), "plane": self.plane.state_dict()})

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state_json`."""
        self.next_step = int(state["step"])
        self.board.load_state_dict(state["board"])
        self.plane.load_state_dict(state["plane"])


def interleaved(arms: list[Arm], finished: set[BatchKey]) -> list[tuple[Arm, int]]:
    """All unfinished batches in the order to run them.

    Batch by batch through all arms, forwards and backwards by turns (ABBA), so that a drift of the
    machine falls on all arms alike.
    """
    most = max((arm.num_batches for arm in arms), default=0)
    order = []
    for index in range(most):
        round_ = [arm for arm in arms if index < arm.num_batches]
        order += [(arm, index) for arm in (reversed(round_) if index % 2 else round_)]
    return [(arm, index) for arm, index in order if arm.key(index) not in finished]
