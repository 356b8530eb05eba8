"""What the experts of a layer were given: second moments of the inputs of both matrices, from calibration text.

Shapes: T tokens, K experts per token, E experts, D model width, I expert width, R rows of one expert.
"""

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from thermoe.errors import ConfigError
from thermoe.experts.fused import experts_of
from thermoe.kernels.expert_mlp import DenseMatrices, ExpertWeights
from thermoe.kernels.expert_mlp.reference import activate

PRIOR_ROWS = 2048.0  # rows of the mean expert that each expert is given besides its own: text is never quite the same
_SHARED = 0.9  # share of the layer's own moment in the prior of fc1; the rest is white


class Moments:
    """Sums of `weight**2 x x'` over the tokens that each expert served; `weight` is the token's gate for it.

    Args:
        experts: Dense weights of the layer, needed for the inputs of the second matrix.

    Attributes:
        fc1_EDD, fc2_EII: Sums for both matrices, float32.
        rows_E: Rows each expert was given.
    """

    def __init__(self, experts: ExpertWeights) -> None:
        if not isinstance(experts.fc1, DenseMatrices) or not isinstance(experts.fc2, DenseMatrices):
            raise ConfigError("moments are taken on dense experts: give the weights as they are before quantising")
        self._experts = experts
        self._fc1, self._fc2 = experts.fc1.weight_ENC, experts.fc2.weight_ENC
        num_experts, d_model, inter_size = experts.num_experts, experts.d_model, experts.inter_size
        zeros = torch.zeros(num_experts, device=self._fc1.device)
        self.rows_E = zeros
        self.fc1_EDD = zeros.new_zeros(num_experts, d_model, d_model)
        self.fc2_EII = zeros.new_zeros(num_experts, inter_size, inter_size)

    @torch.no_grad()
    def add(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> None:
        """Adds the tokens of one forward.

        Raises:
            ConfigError: tokens of another width, or ids and weights of other tokens.
        """
        wanted = x_TD.ndim == 2 and x_TD.shape[1] == self._experts.d_model and ids_TK.ndim == 2
        if not wanted or ids_TK.shape[0] != x_TD.shape[0] or weights_TK.shape != ids_TK.shape:
            raise ConfigError(
                f"tokens {tuple(x_TD.shape)}, ids {tuple(ids_TK.shape)} and weights {tuple(weights_TK.shape)}: need "
                f"(tokens, {self._experts.d_model}) and twice (tokens, experts per token)"
            )
        for expert in range(self._experts.num_experts):
            token_R, slot_R = (ids_TK == expert).nonzero(as_tuple=True)
            if token_R.numel() == 0:
                continue
            gate_R1 = weights_TK[token_R, slot_R].float().unsqueeze(-1)
            x_RD = x_TD[token_R].to(self._fc1.dtype)
            hidden = nn.functional.linear(x_RD, self._fc1[expert]).float()
            if self._experts.bias1_EN is not None:
                hidden = hidden + self._experts.bias1_EN[expert]
            weighted_RD = x_RD.float() * gate_R1
            weighted_RI = activate(hidden, self._experts.activation) * gate_R1
            self.fc1_EDD[expert].addmm_(weighted_RD.T, weighted_RD)
            self.fc2_EII[expert].addmm_(weighted_RI.T, weighted_RI)
            self.rows_E[expert] += token_R.numel()

    def fc1_moment(self, prior_rows: float = PRIOR_ROWS) -> Tensor:
        """(E, D, D), with the layer's mean as a prior: all experts of a layer draw from the same tokens."""
        return self._with_prior(self.fc1_EDD, prior_rows, shared=_SHARED)

    def fc2_moment(self, prior_rows: float = PRIOR_ROWS) -> Tensor:
        """(E, I, I), with a white prior: the hidden units of two experts have nothing to do with each other."""
        return self._with_prior(self.fc2_EII, prior_rows, shared=0.0)

    def _with_prior(self, moment: Tensor, prior_rows: float, shared: float) -> Tensor:
        if not bool(self.rows_E.sum() > 0):
            raise ConfigError("no token has passed through these experts: run calibration text through the model first")
        mean = moment.sum(dim=0) / self.rows_E.sum()
        white = mean.diagonal().mean() * torch.eye(mean.shape[-1], device=mean.device)
        return moment + prior_rows * (shared * mean + (1 - shared) * white)


class MomentWatch:
    """Collects `Moments` of experts blocks of a model while it is open; the model computes as before.

    Args:
        blocks: Name -> experts block, called with hidden states (T, D), ids (T, K) and weights (T, K).

    Attributes:
        moments: Name -> what was seen.
    """

    def __init__(self, blocks: dict[str, nn.Module]) -> None:
        self._blocks = blocks
        self.moments = {name: Moments(experts_of(block)) for name, block in blocks.items()}
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for name, block in self._blocks.items():
            self._handles.append(block.register_forward_pre_hook(self._seen(self.moments[name]), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @staticmethod
    def _seen(moments: Moments) -> Any:
        def hook(_block: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            hidden, ids_TK, weights_TK = [*args, *kwargs.values()][:3]
            moments.add(hidden.reshape(-1, hidden.shape[-1]), ids_TK, weights_TK)

        return hook
