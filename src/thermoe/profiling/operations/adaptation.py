"""Operations of adapting at test time: the adapter's forward and update on the host, a training step of a router.

Shapes: L layers, E experts, F features of the adapter, T tokens, D model width.
The adapter is a case of L layers as `top_k` = 1, routed_rows = L E, hidden_size F and inter_size its hidden units.
"""

import numpy as np
import torch
from torch import Tensor

from thermoe.adaptation.ttha import FEATURES, HIDDEN, TTHAAdapter
from thermoe.errors import ConfigError
from thermoe.profiling.case import Case
from thermoe.profiling.draw import Draw
from thermoe.profiling.operations.bench import (
    FLOATS,
    Operation,
    Setup,
    activation_dtype,
    relative_error,
)
from thermoe.types import FloatArray

PRICE = 0.1
LEARNING_RATE = 1e-3


class _Adapter:
    """An adapter and features for all its experts."""

    def __init__(self, case: Case, setup: Setup) -> None:
        if case.routed_rows % case.num_experts or (case.hidden_size, case.inter_size) != (len(FEATURES), HIDDEN):
            raise ConfigError(
                f"{case}: the adapter takes layers x experts rows, hidden_size {len(FEATURES)} and inter_size {HIDDEN}"
            )
        self.skew = 1.0
        shape = (case.routed_rows // case.num_experts, case.num_experts)
        rng = np.random.default_rng(0)
        self._adapter = TTHAAdapter(*shape)
        self._features: FloatArray = rng.normal(size=(*shape, len(FEATURES)))
        self._slope: FloatArray = rng.normal(size=shape)
        self._adapter.offset = rng.normal(0.0, 0.1, shape)
        self._adapter.w2 = rng.normal(0.0, 0.1, HIDDEN)


class AdapterForward(_Adapter):
    """Features to biases."""

    def run(self, step: int) -> Tensor:
        """(L, E) biases."""
        return torch.from_numpy(self._adapter(self._features))

    def rel_error(self) -> float:
        """Against the formula written out."""
        adapter, hidden = self._adapter, np.tanh(np.einsum("lef,fh->leh", self._features, self._adapter.w1))
        raw = adapter.max_bias * np.tanh(np.einsum("leh,h->le", hidden, adapter.w2) + adapter.offset)
        return relative_error(self.run(0), torch.from_numpy(raw - raw.mean(axis=1, keepdims=True)))


class AdapterUpdate(_Adapter):
    """One step of learning."""

    def run(self, step: int) -> Tensor:
        """The norm of the step."""
        return torch.tensor(self._adapter.update(self._features, self._slope, 0.1))

    def rel_error(self) -> float:
        """A step must lower the excess cost, the sum of slope and bias; how much is the adapter's own test."""
        self._adapter.weight_decay = 0.0
        before = float((self._slope * self._adapter(self._features)).sum())
        self.run(0)
        return 0.0 if float((self._slope * self._adapter(self._features)).sum()) < before else float("inf")


class TttStep:
    """One step on a router's weights: entropy of its choice plus price times expected cost, gradient, update."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self.skew = 1.0
        draw = Draw(setup.device, activation_dtype(case))
        self._x_TD = draw.normal(case.tokens, case.hidden_size)
        self._router_ED = draw.weights(case.num_experts, case.hidden_size).requires_grad_()
        self._cost_E = Draw(setup.device, torch.float32, 1).normal(case.num_experts).exp()

    def run(self, step: int) -> Tensor:
        """The loss before the update."""
        loss, gradient_ED = self._gradient()
        self._router_ED.detach().sub_(gradient_ED, alpha=LEARNING_RATE)
        return loss

    def rel_error(self) -> float:
        """The gradient against its closed form in float64."""
        _, got_ED = self._gradient()
        x_TD = self._x_TD.double()
        p_TE = (x_TD @ self._router_ED.detach().double().T).softmax(dim=-1)
        value_TE = PRICE * self._cost_E.double() - p_TE.log()  # entropy's part of p log p that softmax lets through
        slope_TE = p_TE * (value_TE - (p_TE * value_TE).sum(dim=-1, keepdim=True))
        return relative_error(got_ED, slope_TE.T @ x_TD / len(x_TD))

    def _gradient(self) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            log_p_TE = (self._x_TD @ self._router_ED.T).float().log_softmax(dim=-1)
            loss = (log_p_TE.exp() * (PRICE * self._cost_E - log_p_TE)).sum(dim=-1).mean()
        (gradient_ED,) = torch.autograd.grad(loss, self._router_ED)
        return loss.detach(), gradient_ED


def _forward_flops(c: Case) -> float:
    return c.routed_rows * 2.0 * (c.hidden_size + 1) * c.inter_size


def _feature_bytes(c: Case) -> float:
    return c.routed_rows * 8.0 * (c.hidden_size + 2)


def _router_bytes(c: Case) -> float:
    return float(c.num_experts * c.hidden_size * c.element_bytes)


ADAPTATION_OPERATIONS = {
    "ttha_adapter_forward": Operation(
        build=AdapterForward,
        implementations=("host",),
        dtypes=("float32",),
        flops=_forward_flops,
        bytes_moved=_feature_bytes,
        step_bytes=_feature_bytes,
        on_host=True,
    ),
    "ttha_update": Operation(
        build=AdapterUpdate,
        implementations=("host",),
        dtypes=("float32",),
        flops=lambda c: 3.0 * _forward_flops(c),
        bytes_moved=lambda c: 2.0 * _feature_bytes(c),
        step_bytes=_feature_bytes,
        on_host=True,
    ),
    "ttt_step": Operation(
        build=TttStep,
        implementations=("torch",),
        dtypes=FLOATS,
        flops=lambda c: 4.0 * c.tokens * c.hidden_size * c.num_experts,
        bytes_moved=lambda c: 4.0 * _router_bytes(c) + 2.0 * c.tokens * c.hidden_size * c.element_bytes,
        step_bytes=_router_bytes,
    ),
}
