"""Rotary position embedding of queries and keys in one launch, for the few positions of a decode step."""

from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.operands import check_operands
from thermoe.kernels.rotary.reference import rotary_reference

__all__ = ["rotary", "rotary_reference"]


def rotary(q_BHSW: Tensor, k_BGSW: Tensor, cos_BSW: Tensor, sin_BSW: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate each head: x * cos + (-second half of x, first half of x) * sin, in float32, rounded once.

    Args:
        q_BHSW, k_BGSW: Queries and keys; W even; any strides but for the last dimension, which is contiguous.
        cos_BSW, sin_BSW: Of the positions, contiguous, (B or 1, S, W).

    Returns:
        Both, contiguous, in their dtypes.

    Raises:
        ConfigError: Shapes, dtypes, devices or strides that do not fit.
    """
    _check(q_BHSW, k_BGSW, cos_BSW, sin_BSW)
    if not q_BHSW.is_cuda or not q_BHSW.numel():
        return rotary_reference(q_BHSW, k_BGSW, cos_BSW, sin_BSW)
    from thermoe.kernels.rotary.triton import rotary_triton

    return rotary_triton(q_BHSW, k_BGSW, cos_BSW, sin_BSW)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    shapes = [tuple(t.shape) for t in (q, k, cos, sin)]
    if q.ndim != 4 or k.ndim != 4 or cos.ndim != 3 or q.shape[-1] % 2:
        raise ConfigError(
            f"queries, keys, cosines and sines of shapes {shapes}: needed 4, 4, 3, 3 dimensions, width even"
        )
    batch, _, positions, width = q.shape
    wanted = ((batch, positions, width), (1, positions, width))
    if k.shape[0] != batch or k.shape[2:] != q.shape[2:] or tuple(cos.shape) not in wanted or sin.shape != cos.shape:
        raise ConfigError(f"queries, keys, cosines and sines of shapes {shapes}: batch, positions or width differ")
    check_operands("queries, keys, cosines and sines", (q, k, cos, sin), one_dtype=False)
    if q.stride(-1) != 1 or k.stride(-1) != 1 or not (cos.is_contiguous() and sin.is_contiguous()):
        raise ConfigError("heads, cosines and sines need a contiguous last dimension: call contiguous()")
