"""A small neural network in numpy: fitted here, stored as plain lists, evaluated with three matrix products.

What is a choice among few (a format, a value of tokens) enters as a code: each has its own row of a table that is added
to the first layer, which costs nothing to evaluate. Shapes: B rows, F features, V codes, H columns that describe a
code, Q targets.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from thermoe.errors import DataError
from thermoe.types import FloatArray, IntArray

Float32Array = NDArray[np.float32]

HIDDEN_LAYERS = 3
# Features are held within this many standard deviations: far outside, the network says what it says at the edge.
FEATURE_REACH = 4.0
_BETA1, _BETA2, _EPSILON = 0.9, 0.99, 1e-8
_WARM_UP = 0.1
# A row off by more than this factor pulls no harder: exp of the first steps' errors must not blow up.
_MOST_LOG_ERROR = 1.0
# Below this relative error the loss is quadratic, so that the last steps settle.
_ROUND_OFF = 0.01
# Rows answered at once: what lies between two layers stays in the cache.
_CHUNK = 256
# Larger ones are no weights of a fit, and would overflow.
MOST_WEIGHT = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """Settings of a fit.

    Attributes:
        width: Units of each hidden layer.
        epochs, batch: Passes over the rows; rows of one step.
        learning_rate: At its peak, one tenth into the fit; it falls to zero along a cosine.
        weight_decay: Share of a weight that a step at the peak takes away, over the learning rate.
    """

    width: int = 64
    epochs: int = 40
    batch: int = 512
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2


@dataclass(frozen=True, slots=True)
class Network:
    """Features (B, F) and codes (B,) to targets (B, Q); weights are held in float32.

    Attributes:
        mean, spread: Of each feature, (F,); of each target, in `target_mean` and `target_spread` (Q,).
        table: What a code adds to the first layer (V, width).
        layers: Weights (in, out) and offsets (out,).
    """

    mean: Float32Array
    spread: Float32Array
    table: Float32Array
    target_mean: Float32Array
    target_spread: Float32Array
    layers: list[tuple[Float32Array, Float32Array]]

    def __call__(self, features: FloatArray, codes: IntArray) -> FloatArray:
        """Targets of each row (B, Q)."""
        weights, offsets = self.layers[0]
        hidden = _silu(_scaled(features, self.mean, self.spread) @ weights + offsets + self.table[codes])
        for weights, offsets in self.layers[1:-1]:
            hidden = _silu(hidden @ weights + offsets)
        weights, offsets = self.layers[-1]
        result = (hidden @ weights + offsets) * self.target_spread + self.target_mean
        return np.asarray(result, dtype=np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, as JSON has them."""
        return {
            "mean": _plain(self.mean),
            "spread": _plain(self.spread),
            "table": _plain(self.table),
            "target_mean": _plain(self.target_mean),
            "target_spread": _plain(self.target_spread),
            "layers": [{"weights": _plain(w), "offsets": _plain(b)} for w, b in self.layers],
        }

    @classmethod
    def from_dict(cls, values: Any, num_features: int, num_codes: int, num_targets: int, where: str) -> Self:
        """Inverse of `as_dict`; sizes that do not fit each other and numbers that are not finite are a `DataError`."""
        try:
            with np.errstate(over="ignore"):  # what overflows is refused below
                network = cls(
                    mean=np.array(values["mean"], np.float32),
                    spread=np.array(values["spread"], np.float32),
                    table=np.array(values["table"], np.float32),
                    target_mean=np.array(values["target_mean"], np.float32),
                    target_spread=np.array(values["target_spread"], np.float32),
                    layers=[
                        (np.array(v["weights"], np.float32), np.array(v["offsets"], np.float32))
                        for v in values["layers"]
                    ],
                )
        except (KeyError, TypeError, ValueError, OverflowError) as err:
            raise DataError(f"{where}: a network lacks {' '.join(str(err).split())[:100]}") from err
        widths = [num_features, *(b.shape[0] if b.ndim == 1 else -1 for _, b in network.layers)]
        shapes = [w.shape for w, _ in network.layers]
        fits = (
            len(network.layers) > 1
            and widths[-1] == num_targets
            and shapes == list(pairwise(widths))
            and network.mean.shape == network.spread.shape == (num_features,)
            and network.table.shape == (num_codes, widths[1])
            and network.target_mean.shape == network.target_spread.shape == (num_targets,)
        )
        arrays = [network.mean, network.spread, network.table, network.target_mean, network.target_spread]
        arrays += [a for layer in network.layers for a in layer]
        if not fits or not all((np.abs(a) < MOST_WEIGHT).all() for a in arrays) or (network.spread <= 0).any():
            raise DataError(f"{where}: a network of {num_features} features holds sizes or numbers that do not fit")
        return network


class Ensemble:
    """Mean of networks that `can_be_averaged`, side by side in one set of arrays."""

    def __init__(self, networks: list[Network]) -> None:
        first, count = networks[0], len(networks)
        self._mean, self._spread = first.mean, first.spread
        self._first = np.concatenate([n.layers[0][0] for n in networks], axis=1)
        self._table = np.concatenate([n.table + n.layers[0][1] for n in networks], axis=1)
        inner = [[n.layers[i] for n in networks] for i in range(1, len(first.layers) - 1)]
        self._inner = [(np.stack([w for w, _ in layer]), np.stack([b for _, b in layer])[:, None]) for layer in inner]
        self._last = np.stack([n.layers[-1][0] * (n.target_spread / np.float32(count)) for n in networks])
        self._offset = np.mean([n.layers[-1][1] * n.target_spread + n.target_mean for n in networks], axis=0)

    def __call__(self, features: FloatArray, codes: IntArray) -> FloatArray:
        """Targets of each row (B, Q)."""
        if len(codes) <= _CHUNK:
            return self._mean_of(features, codes)
        cuts = range(0, len(codes), _CHUNK)
        return np.concatenate([self._mean_of(features[i : i + _CHUNK], codes[i : i + _CHUNK]) for i in cuts])

    def _mean_of(self, features: FloatArray, codes: IntArray) -> FloatArray:
        hidden = _scaled(features, self._mean, self._spread) @ self._first
        hidden += self._table[codes]
        hidden = _gated(hidden).reshape(len(hidden), len(self._last), -1).transpose(1, 0, 2)
        for weights, offsets in self._inner:
            hidden = hidden @ weights
            hidden += offsets
            hidden = _gated(hidden)
        return np.asarray((hidden @ self._last).sum(axis=0) + self._offset, dtype=np.float64)


def can_be_averaged(networks: list[Network]) -> bool:
    """Whether they have the same sizes and scales."""
    scales = [(n.mean, n.spread, n.target_mean, n.target_spread) for n in networks]
    sizes = [[w.shape for w, _ in n.layers] for n in networks]
    same = all(np.array_equal(a, b) for other in scales for a, b in zip(scales[0], other, strict=True))
    return same and all(s == sizes[0] for s in sizes)


def train_network(
    features: FloatArray, codes: IntArray, described: FloatArray, targets: FloatArray, seed: int, training: Training
) -> Network:
    """Fit a network to logarithms, by the mean relative error of their exponentials.

    Args:
        features: (B, F), finite.
        codes: (B,), each below V.
        described: What each code is, as numbers (V, H): codes share what they have in common.
        targets: Logarithms (B, Q); NaN where a row says nothing of a target.
        seed: Of the first weights and of the order of rows.
        training: Settings.
    """
    rng = np.random.default_rng(seed)
    known = np.isfinite(targets)
    mean, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    target_mean = np.array([np.median(t[k]) if k.any() else 0.0 for t, k in zip(targets.T, known.T, strict=True)])
    deviation = np.array([t[k].std() if k.any() else 1.0 for t, k in zip(targets.T, known.T, strict=True)])
    scales = [np.asarray(a, np.float32) for a in (mean, spread, target_mean, np.maximum(deviation, 1e-3))]
    labels = _scaled(described, described[codes].mean(axis=0), np.maximum(described[codes].std(axis=0), 1e-6))
    x = np.concatenate([_scaled(features, scales[0], scales[1]), labels[codes]], axis=1)
    y = np.nan_to_num(targets - scales[2]).astype(np.float32)
    widths = [x.shape[1], *[training.width] * HIDDEN_LAYERS, y.shape[1]]
    parameters = _first_parameters(widths, rng)
    batch = min(training.batch, len(x))
    steps_per_epoch = -(-len(x) // batch)
    optimiser = _Adam(parameters, training, training.epochs * steps_per_epoch)
    for _ in range(training.epochs):
        order = rng.permutation(len(x))
        for chosen in np.array_split(order, steps_per_epoch):
            optimiser.step(_gradients(parameters, x[chosen], y[chosen], known[chosen], scales[3]))
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    (weights, offsets), num_features = layers[0], features.shape[1]
    layers[0] = weights[:num_features], offsets
    return Network(scales[0], scales[1], labels @ weights[num_features:], scales[2], scales[3], layers)


class _Adam:
    """Adam with decoupled weight decay, a warm-up and a cosine."""

    def __init__(self, parameters: list[Float32Array], training: Training, num_steps: int) -> None:
        self._parameters, self._training, self._num_steps, self._done = parameters, training, num_steps, 0
        self._first = [np.zeros_like(p) for p in parameters]
        self._second = [np.zeros_like(p) for p in parameters]

    def step(self, gradients: list[Float32Array]) -> None:
        """Move all parameters, in place."""
        self._done += 1
        part = self._done / self._num_steps
        rate = min(part / _WARM_UP, 0.5 * (1.0 + np.cos(np.pi * part))) * self._training.learning_rate
        bias1, bias2 = 1.0 - _BETA1**self._done, 1.0 - _BETA2**self._done
        kept = np.float32(1.0 - rate * self._training.weight_decay)
        for parameter, gradient, first, second in zip(
            self._parameters, gradients, self._first, self._second, strict=True
        ):
            np.add(first, (1.0 - _BETA1) * (gradient - first), out=first)
            np.add(second, (1.0 - _BETA2) * (gradient * gradient - second), out=second)
            if parameter.ndim == 2:
                np.multiply(parameter, kept, out=parameter)
            root = np.sqrt(second / np.float32(bias2)) + np.float32(_EPSILON)
            np.subtract(parameter, np.float32(rate / bias1) * first / root, out=parameter)


def _first_parameters(widths: list[int], rng: np.random.Generator) -> list[Float32Array]:
    parameters: list[Float32Array] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        scale = np.sqrt(2.0 / fan_in) * (0.1 if i == HIDDEN_LAYERS else 1.0)
        parameters.append((scale * rng.standard_normal((fan_in, fan_out))).astype(np.float32))
        parameters.append(np.zeros(fan_out, np.float32))
    return parameters


def _gradients(
    parameters: list[Float32Array],
    x: Float32Array,
    y: Float32Array,
    known: NDArray[np.bool_],
    target_spread: Float32Array,
) -> list[Float32Array]:
    """Of the mean relative error, in the order of the parameters."""
    inputs, gates = [x], []
    for weights, offsets in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        before = inputs[-1] @ weights + offsets
        gate = _sigmoid(before)
        inputs.append(before * gate)
        gates.append(gate * (1.0 + before - inputs[-1]))
    log_error = np.clip((inputs[-1] @ parameters[-2] + parameters[-1]) * target_spread - y, -4.0, _MOST_LOG_ERROR)
    relative = np.expm1(log_error)
    slope = relative / np.sqrt(relative * relative + np.float32(_ROUND_OFF**2)) * (1.0 + relative)
    back = slope * known * (target_spread / np.float32(len(x)))
    gradients: list[Any] = []
    for i in range(len(gates), -1, -1):
        gradients += [back.sum(axis=0), inputs[i].T @ back]
        if i:
            back = (back @ parameters[2 * i].T) * gates[i - 1]
    return gradients[::-1]


def _scaled(features: FloatArray, mean: NDArray[Any], spread: NDArray[Any]) -> Float32Array:
    scaled = (features - mean) / spread
    return np.asarray(np.clip(scaled, -FEATURE_REACH, FEATURE_REACH), dtype=np.float32)


def _gated(x: Float32Array) -> Float32Array:
    """`_silu` by a function that cannot overflow."""
    half = x * np.float32(0.5)
    return np.asarray(half + half * np.tanh(half), dtype=np.float32)


def _silu(x: Float32Array) -> Float32Array:
    result: Float32Array = x * _sigmoid(x)
    return result


def _sigmoid(x: Float32Array) -> Float32Array:
    with np.errstate(over="ignore"):  # exp of a large number is inf, and 1 / inf the 0 that is meant
        return np.asarray(1.0 / (1.0 + np.exp(-x)), dtype=np.float32)


def _plain(values: Float32Array) -> list[Any]:
    """Lists with nine significant digits, by which a float32 is known exactly."""
    flat = np.array([float(f"{v:.9g}") for v in values.ravel()])
    return list(flat.reshape(values.shape).tolist())
