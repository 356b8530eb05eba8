"""What a layer remembers of its last batches. Shapes: E experts, C batches (columns) of one forward."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from thermoe.types import SysState


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class BatchMetrics:
    """One forward of one layer; tensors stay on the layer's device, so that nothing waits for it.

    Attributes:
        index: Forwards of the layer before this one.
        num_tokens: Tokens of the forward (live or not).
        tokens_per_expert: (E,) live tokens routed to each expert.
        distinct_experts: (C,) experts touched by each batch.
        gate_mass_kept: (C,) share of the layer's own gate mass that was kept.
        sys_state: The state of the hardware the caller gave, if any.
    """

    index: int
    num_tokens: int
    tokens_per_expert: Tensor
    distinct_experts: Tensor
    gate_mass_kept: Tensor
    sys_state: SysState | None


class MetricsBuffer:
    """The metrics of the last `capacity` forwards; older ones are forgotten."""

    def __init__(self, capacity: int) -> None:
        self._kept: deque[BatchMetrics] = deque(maxlen=capacity)
        self.num_forwards = 0

    def append(self, metrics: BatchMetrics) -> None:
        """Adds one forward."""
        self._kept.append(metrics)
        self.num_forwards += 1

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[BatchMetrics]:
        """Oldest first."""
        return iter(self._kept)

    @property
    def last(self) -> BatchMetrics:
        """The newest entry; IndexError before the first forward."""
        return self._kept[-1]

    def clear(self) -> None:
        """Forgets all entries and counts forwards from zero again."""
        self._kept.clear()
        self.num_forwards = 0
