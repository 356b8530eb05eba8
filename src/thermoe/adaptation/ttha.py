"""A1, the adapter of test-time hardware-efficiency adaptation: predicted costs and state to a bias per expert.

L layers, E experts, F features, H hidden units. Why these features and sizes: docs/concepts/adaptation.md.
"""

from typing import Any

import numpy as np

from thermoe.types import FloatArray

FEATURES = ("log_relative_cost", "usage", "value_density", "depth", "log_price", "pressure", "error", "one")
HIDDEN = 8


class TTHAAdapter:
    """A network of one hidden layer, the same for all experts, plus one learned offset per expert and layer.

    bias = max_bias * tanh(w2 . tanh(W1 f) + offset), then centred in each layer, for what all
    experts of a layer share is the price's work. It starts at exactly 0: w2 and offset are 0.

    Args:
        num_layers: L.
        num_experts: E.
        max_bias: Bound of a bias before centring, in units of the ranking score.
        learning_rate: Step of the update.
        weight_decay: Pull of the learned values towards 0, per update.
        seed: Of W1.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        *,
        max_bias: float = 0.5,
        learning_rate: float = 0.02,
        weight_decay: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.max_bias, self.learning_rate, self.weight_decay = max_bias, learning_rate, weight_decay
        self._shape, self._seed = (num_layers, num_experts), seed
        self.reset()

    def reset(self) -> None:
        """Back to the initial state, bit for bit."""
        rng = np.random.default_rng(self._seed)
        self.w1: FloatArray = rng.normal(0.0, 1.0 / np.sqrt(len(FEATURES)), (len(FEATURES), HIDDEN))
        self.w2: FloatArray = np.zeros(HIDDEN)
        self.offset: FloatArray = np.zeros(self._shape)

    def __call__(self, features: FloatArray) -> FloatArray:
        """(L, E, F) features to (L, E) biases, each layer's mean 0."""
        raw = self.max_bias * np.tanh(np.tanh(features @ self.w1) @ self.w2 + self.offset)
        return np.asarray(raw - raw.mean(axis=1, keepdims=True))

    def update(self, features: FloatArray, slope: FloatArray, error: float) -> float:
        """One step down the expected excess cost; returns the norm of the step.

        The excess is error x sum(slope x bias): `slope` (L, E) says how much predicted cost one unit of an
        expert's bias adds, `error` how far the target is missed (above 0: too much is used). So
        experts that cost much for the gate mass they carry lose bias while the target is exceeded.
        The step is normalised, so its size is the learning rate times the error.
        """
        hidden = np.tanh(features @ self.w1)
        squash = 1.0 - np.tanh(hidden @ self.w2 + self.offset) ** 2
        centred = slope - slope.mean(axis=1, keepdims=True)
        at_output = error * self.max_bias * centred * squash
        gradient_w2 = np.tensordot(at_output, hidden, axes=2) / at_output.size
        gradient_w1 = np.tensordot(features, at_output[..., None] * self.w2 * (1.0 - hidden**2), axes=((0, 1), (0, 1)))
        scale = self.learning_rate * abs(error) / max(float(np.abs(at_output).max()), 1e-12)
        keep = 1.0 - self.weight_decay
        step_offset, step_w2 = scale * at_output, scale * gradient_w2
        self.w1 = self.w1 - scale * gradient_w1 / at_output.size
        self.w2 = np.clip(keep * self.w2 - step_w2, -4.0, 4.0)
        self.offset = np.clip(keep * self.offset - step_offset, -4.0, 4.0)
        return float(np.sqrt((step_offset**2).sum() + (step_w2**2).sum()))

    def state_dict(self) -> dict[str, Any]:
        """JSON-able learned values."""
        return {"w1": self.w1.tolist(), "w2": self.w2.tolist(), "offset": self.offset.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, bit for bit."""
        self.w1, self.w2, self.offset = (np.asarray(state[name], dtype=np.float64) for name in ("w1", "w2", "offset"))
