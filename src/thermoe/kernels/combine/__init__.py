"""K4, combine: each token's expert outputs, weighted and summed."""

from torch import Tensor

from thermoe.kernels.combine.reference import combine_reference


def combine(y_ND: Tensor, weights_TK: Tensor, ids_TK: Tensor, num_experts: int, out_TD: Tensor | None = None) -> Tensor:
    """Sum each token's expert outputs by its weights, accumulated in float32 in the order of its slots.

    Args:
        y_ND: (T * K, D) outputs; row t * K + k belongs to slot k of token t. Rows of dropped slots are never read.
        weights_TK: (T, K) weights; 0 drops the slot.
        ids_TK: (T, K) experts; an id outside 0..E-1 drops the slot.
        num_experts: E.
        out_TD: (T, D) where the result goes; a new tensor of y's dtype if None.

    Returns:
        (T, D).
    """
    if out_TD is None:
        out_TD = y_ND.new_empty(ids_TK.shape[0], y_ND.shape[1])
    if y_ND.is_cuda:
        from thermoe.kernels.combine.triton import combine_triton

        combine_triton(y_ND.contiguous(), weights_TK.contiguous(), ids_TK.contiguous(), num_experts, out_TD)
        return out_TD
    return out_TD.copy_(combine_reference(y_ND, weights_TK, ids_TK, num_experts))


__all__ = ["combine", "combine_reference"]
