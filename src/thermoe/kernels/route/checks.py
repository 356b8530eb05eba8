"""What routing refuses before a kernel reads knobs of another layer or a mask of other tokens.

Shapes: T tokens, E experts, K slots per token.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thermoe.errors import ConfigError

if TYPE_CHECKING:
    from thermoe.kernels.route.fused import Scoring
    from thermoe.kernels.route.reference import LayerKnobs

_TABLES = ("cost", "bias", "allowed")
_SCALARS = ("price", "top_k", "protected_k0", "max_experts", "gate_mass", "skip_ratio", "value_power")


def check(logits_TE: Tensor, knobs: "LayerKnobs", top_k: int, columns: int, live_T: Tensor | None) -> None:
    """Refuse logits, or scores, that do not fit the knobs, the mask or the numbers beside them."""
    if logits_TE.ndim != 2 or not logits_TE.is_floating_point() or logits_TE.element_size() < 2:
        raise ConfigError(
            f"logits {tuple(logits_TE.shape)} of {logits_TE.dtype}: needed floating-point numbers of 16 bits or more, "
            "(tokens, experts)"
        )
    num_tokens, num_experts = logits_TE.shape
    _check_knobs(knobs, num_experts, logits_TE.device)
    if not _is_whole(top_k) or not 1 <= top_k <= num_experts:
        raise ConfigError(f"top_k = {top_k!r} of {num_experts} experts: choose 1 to {num_experts}")
    if not _is_whole(columns) or columns < 1 or num_tokens % columns:
        raise ConfigError(f"{num_tokens} tokens in {columns!r} columns: needed a whole number of rows")
    if live_T is not None and (
        live_T.shape != (num_tokens,) or live_T.device != logits_TE.device or live_T.is_complex()
    ):
        raise ConfigError(
            f"live mask {tuple(live_T.shape)} of {live_T.dtype} on {live_T.device}: needed ({num_tokens},) real "
            f"numbers on {logits_TE.device}"
        )


def check_scores(ranks_TE: Tensor, gates_TE: Tensor, log_gates_TE: Tensor | None) -> None:
    """Refuse gates that are not those of the ranks."""
    for name, tensor in (("gates", gates_TE), ("log gates", log_gates_TE)):
        if tensor is not None and (
            tensor.shape != ranks_TE.shape or tensor.device != ranks_TE.device or not tensor.is_floating_point()
        ):
            raise ConfigError(
                f"{name} {tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}: needed floating-point numbers "
                f"{tuple(ranks_TE.shape)} on {ranks_TE.device}, as the ranks"
            )


def check_beside(logits_TE: Tensor, scoring: "Scoring", sums: Tensor | None) -> None:
    """Refuse a scoring or sums that do not fit the logits."""
    num_experts, device = logits_TE.shape[1], logits_TE.device
    groups, kept, correction_E = scoring.groups, scoring.groups_kept, scoring.correction_E
    whole = _is_whole(groups) and _is_whole(kept)
    if not whole or groups < 1 or num_experts % groups or not 1 <= kept <= groups:
        raise ConfigError(f"the best {kept} of {groups} groups of {num_experts} experts: needed equal groups")
    if scoring.sigmoid and groups > 1 and num_experts < 2 * groups:
        raise ConfigError(
            f"{groups} groups of {num_experts // groups} expert under sigmoid gates: a group is ranked by its two best "
            "experts, make fewer groups"
        )
    if correction_E is not None and not (
        scoring.sigmoid and _fits(correction_E, num_experts, device) and correction_E.dtype is torch.float32
    ):
        raise ConfigError(
            f"correction {tuple(correction_E.shape)} of {correction_E.dtype} on {correction_E.device}: needed "
            f"({num_experts},) float32 on {device}, with sigmoid gates"
        )
    if sums is not None and not (
        _fits(sums, 2 * num_experts + 4, device) and sums.dtype in (torch.float64, torch.float32)
    ):
        raise ConfigError(
            f"sums {tuple(sums.shape)} of {sums.dtype} on {sums.device}: needed ({2 * num_experts + 4},) float64 or "
            f"float32 on {device}, contiguous"
        )


def _check_knobs(knobs: "LayerKnobs", num_experts: int, device: torch.device) -> None:
    """The fused kernels read the row, everything else the tables and scalars."""
    for name in _TABLES:
        table: Tensor = getattr(knobs, name)
        if table.shape != (num_experts,) or table.device != device or table.dtype is not torch.float32:
            raise ConfigError(
                f"knobs for {tuple(table.shape)} experts, {name} of {table.dtype} on {table.device}, logits for "
                f"{num_experts} on {device}: make the knobs for this layer and device, in float32"
            )
    if knobs.row is None:
        for name in _SCALARS:
            scalar: Tensor = getattr(knobs, name)
            if not isinstance(scalar, Tensor) or scalar.ndim or scalar.device != device:
                raise ConfigError(f"knob {name} is {scalar!r}: needed one number as a 0-d tensor on {device}")
    elif not _fits(knobs.row, 3 * num_experts + 7, device) or knobs.row.dtype is not torch.float32:
        raise ConfigError(
            f"row of knobs {tuple(knobs.row.shape)} of {knobs.row.dtype} on {knobs.row.device}: needed "
            f"({3 * num_experts + 7},) float32 on {device}, contiguous"
        )


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _fits(tensor: Tensor, length: int, device: torch.device) -> bool:
    return tensor.shape == (length,) and tensor.device == device and tensor.is_contiguous()
