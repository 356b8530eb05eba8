"""R11: predicted energy of the experts a batch will use, differentiable in the router's logits.

T tokens, E experts.
"""

import torch
from torch import Tensor


def compute_energy_loss(logits_TE: Tensor, energy_j_E: Tensor, top_k: int, load_energy_j: float = 0.0) -> Tensor:
    """Expected energy of one layer for one batch [J], a scalar.

    A token touches expert e with probability q = 1 - (1 - p)^k, the chance that k independent draws
    from its gate distribution p include e; the batch touches it unless no token does. Energy is
    sum_e c_e (1 - prod_i (1 - q_ie)) + load_energy_j * sum_ie q_ie. The independence of draws is an
    assumption: draws without replacement touch slightly more experts.

    Args:
        logits_TE: (T, E) router logits.
        energy_j_E: (E,) predicted energy of touching each expert [J].
        top_k: Experts per token.
        load_energy_j: Predicted energy of one more routed row [J].
    """
    if logits_TE.shape[-1] != energy_j_E.shape[-1]:
        raise ValueError(f"costs of {energy_j_E.shape[-1]} experts for logits of {logits_TE.shape[-1]}: need the same")
    log_missed_TE = top_k * torch.log1p(-logits_TE.float().softmax(dim=-1).clamp(max=1.0 - 1e-6))
    touched_E = -torch.expm1(log_missed_TE.sum(dim=0))
    rows = -torch.expm1(log_missed_TE).sum()
    return (energy_j_E * touched_E).sum() + load_energy_j * rows
