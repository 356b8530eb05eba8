"""Runs synthetic activations through the self-contained stack of MoE blocks."""

from itertools import cycle, islice

import torch

from thermoe.experiments.choices import EXPERT_TYPES
from thermoe.experiments.forwards import Forward, Stopwatch, Watcher
from thermoe.experts import ExpertFormat
from thermoe.runtime.block import MoEStack
from thermoe.types import MoEShape, RoutingKnobs, RoutingStatistics
from thermoe.workloads import Batch, TensorBatch


class BlockRunner:
    """One stack with random weights; every batch is one step of T tokens.

    Args:
        shape: Sizes of the stack.
        seed: Of its weights.
        device: Where it runs.
        expert_type: How the experts are held: a name of `EXPERT_TYPES`.

    Attributes:
        bits: Mean precision of the experts of a layer, at which steps are priced; dense ones compute in float32 and
            count as bfloat16.
    """

    def __init__(self, shape: MoEShape, *, seed: int, device: str, expert_type: str = "simple") -> None:
        self.shape = shape
        heads = next(h for h in (4, 2, 1) if shape.hidden_size % h == 0)
        in_turn = [ExpertFormat(name) for name in EXPERT_TYPES[expert_type]]
        formats = list(islice(cycle(in_turn), shape.num_experts))
        self.bits = sum(held_as.bits for held_as in formats) / len(formats)
        self.stack = MoEStack(shape, num_heads=heads, formats=formats, seed=seed, device=device).eval()
        self._device = torch.device(device)
        self._stopwatch = Stopwatch(self._device)
        self._neutral = RoutingKnobs.neutral(shape.num_layers, shape.num_experts, shape.top_k)

    def steps_of(self, batch: Batch) -> tuple[int, int]:
        """One step, with all tokens of the batch."""
        assert isinstance(batch, TensorBatch)
        return 1, batch.hidden_states.shape[0]

    def run(self, batch: Batch, watcher: Watcher, positions: int | None) -> None:
        """Run one batch of tokens."""
        assert isinstance(batch, TensorBatch)
        x_TD = batch.hidden_states.to(self._device)
        watcher.before_forward()
        stop = self._stopwatch.start()
        with torch.inference_mode():
            self.stack(x_TD)
        latency_s = stop()
        watcher.after_forward(
            Forward(
                num_steps=1,
                tokens_per_step=x_TD.shape[0],
                results_per_step=x_TD.shape[0],
                last=dict(self.stack.shared.counters.last),
                nll_C=None,
                latency_s=latency_s,
            )
        )

    def set_knobs(self, knobs: RoutingKnobs | None) -> None:
        """Knobs from the next forward on; None is every token's own choice."""
        self.stack.shared.knobs.write(self._neutral if knobs is None else knobs)

    def drain(self) -> RoutingStatistics:
        """Counters since the last call."""
        return self.stack.shared.counters.drain()

    def routing_s(self) -> None:
        """The block routes inside its layers: there is no hook to clock."""

    def close(self) -> None:
        """Nothing was attached to."""
