"""Sums of routing statistics over the control periods of one batch."""

import numpy as np

from thermoe.types import FloatArray, MoEShape, RoutingStatistics


class Tally:
    """Adds up drained counters; shares become means by live tokens.

    Attributes:
        tokens_LE: (L, E) tokens routed to each expert.
        loads_LE: (L, E) batches that touched each expert.
        num_tokens, num_groups: Tokens and batches counted.
    """

    def __init__(self, shape: MoEShape) -> None:
        self.tokens_LE: FloatArray = np.zeros((shape.num_layers, shape.num_experts))
        self.loads_LE: FloatArray = np.zeros((shape.num_layers, shape.num_experts))
        self._mass_L: FloatArray = np.zeros(shape.num_layers)
        self._changed_L: FloatArray = np.zeros(shape.num_layers)
        self.num_tokens = 0
        self.num_groups = 0

    def add(self, statistics: RoutingStatistics) -> None:
        """Count one period."""
        self.num_tokens += statistics.num_tokens
        self.num_groups += statistics.num_groups
        self.tokens_LE += statistics.tokens_per_expert
        self.loads_LE += statistics.loads_per_expert
        self._mass_L += statistics.gate_mass_kept * statistics.num_tokens
        self._changed_L += statistics.changed_slots * statistics.num_tokens

    @property
    def gate_mass(self) -> FloatArray:
        """(L,) share of the model's own gate mass kept."""
        return self._mass_L / max(self.num_tokens, 1)

    @property
    def changed_slots(self) -> FloatArray:
        """(L,) share of the model's own choices replaced or dropped."""
        return self._changed_L / max(self.num_tokens, 1)
