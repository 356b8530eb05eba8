"""R11: predicted energy of the experts a batch will use, differentiable in the router's logits.

T tokens, E experts.
"""

import torch
from torch import Tensor

from thermoe.errors import ConfigError


def compute_energy_loss(logits_TE: Tensor, energy_j_E: Tensor, top_k: int, load_energy_j: float = 0.0) -> Tensor:
    """Expected energy of one layer for one batch [J], a scalar.

    A token touches expert e with probability q = 1 - (1 - p)^k, the chance that k independent draws
    from its gate distribution p include e; the batch touches it unless no token does. Energy is
    sum_e c_e (1 - prod_i (1 - q_ie)) + load_energy_j * sum_ie q_ie. The independence of draws is an
    assumption: draws without replacement touch slightly more experts.

    Differentiable in logits and costs; no operation waits for the host. Computed in float32, or in the
    logits' precision where that is higher.

    Args:
        logits_TE: (T, E) router logits.
        energy_j_E: (E,) predicted energy of touching each expert [J].
        top_k: Experts per token.
        load_energy_j: Predicted energy of one more routed row [J].

    Raises:
        ConfigError: Shapes that do not belong together, or fewer than 1 expert per token.
    """
    if logits_TE.dim() != 2 or energy_j_E.shape != logits_TE.shape[1:]:
        raise ConfigError(
            f"logits of shape {tuple(logits_TE.shape)} with costs of shape {tuple(energy_j_E.shape)}: "
            "needed (tokens, experts) and (experts,)"
        )
    if top_k < 1:
        raise ConfigError(f"top_k = {top_k}: needs at least 1 expert per token")
    logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
    log_missed_TE = top_k * torch.log1p(-logits_TE.softmax(dim=-1).clamp(max=1.0 - 1e-6))
    touched_E = -torch.expm1(log_missed_TE.sum(dim=0))
    rows = -torch.expm1(log_missed_TE).sum()
    return (energy_j_E * touched_E).sum() + load_energy_j * rows
