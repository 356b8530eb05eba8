"""Keeps load spread over experts: smoothed loads, a balance score, and biases learned without a loss.

L layers, E experts.
"""

from typing import Any

import numpy as np

from thermoe.types import FloatArray, RoutingStatistics


class ExpertLoadBalancer:
    """Loss-free balancing (arXiv 2408.15664): each update moves every bias by a fixed step against its overload.

    Args:
        num_layers: L.
        num_experts: E.
        rate: Step of one update, in units of the ranking score.
        smoothing: Weight of the newest loads in the smoothed ones, in (0, 1].
        max_bias: Bound of a bias.

    Attributes:
        load: (L, E) smoothed share of routed rows, rows sum to 1; None before the first update.
        bias: (L, E) what to add to the ranking scores.
    """

    def __init__(
        self, num_layers: int, num_experts: int, *, rate: float = 1e-3, smoothing: float = 0.1, max_bias: float = 1.0
    ) -> None:
        self.rate, self.smoothing, self.max_bias = rate, smoothing, max_bias
        self.load: FloatArray | None = None
        self.bias: FloatArray = np.zeros((num_layers, num_experts))

    def update(self, statistics: RoutingStatistics) -> FloatArray:
        """Take in counters and return the new biases; layers without a routed row keep theirs."""
        rows = statistics.tokens_per_expert
        total = rows.sum(axis=1, keepdims=True)
        even = 1.0 / rows.shape[1]
        share = np.where(total > 0, rows / np.maximum(total, 1.0), even if self.load is None else self.load)
        self.load = share if self.load is None else (1 - self.smoothing) * self.load + self.smoothing * share
        moved = self.bias + self.rate * np.sign(even - self.load) * (total > 0)
        self.bias = np.clip(moved, -self.max_bias, self.max_bias)
        return self.bias

    def balance(self) -> float:
        """1 for even load, towards 1 / E when one expert takes all: mean over layers of 1 / (E sum share^2)."""
        if self.load is None:
            return 1.0
        return float(np.mean(1.0 / (self.load.shape[1] * (self.load**2).sum(axis=1))))

    def reset(self) -> None:
        """Forget loads and biases."""
        self.load, self.bias = None, np.zeros_like(self.bias)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"load": None if self.load is None else self.load.tolist(), "bias": self.bias.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.load = None if state["load"] is None else np.asarray(state["load"])
        self.bias = np.asarray(state["bias"])
