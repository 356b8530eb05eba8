"""What a question to the cost model may hold, and which fitted law answers it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from thermoe.cost.cases import DTYPE_BITS
from thermoe.cost.fitted import FittedLaw
from thermoe.cost.observations import LawKey
from thermoe.errors import CostError
from thermoe.types import FloatArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

USUAL_BITS = 16.0
_MOST_BITS, _MOST_LOAD = 64, 1e12


def numbers(name: str, values: "ArrayLike") -> FloatArray:
    """Values as an array.

    Raises:
        CostError: They are no numbers.
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise CostError(f"{name}: needs numbers ({' '.join(str(err).split())})") from err


def loads_of(loads: "ArrayLike", num_experts: int) -> FloatArray:
    """Loads of a layer's experts in rows, (..., E).

    Raises:
        CostError: Not a number for each expert, negative, not finite or beyond all reason.
    """
    n = numbers("loads", loads)
    if n.ndim < 1 or not n.size or n.shape[-1] != num_experts or not ((n >= 0) & (n <= _MOST_LOAD)).all():
        raise CostError(f"loads of shape {n.shape}: need (..., {num_experts}), not negative and {_MOST_LOAD:g} at most")
    return n


def weight_bits(bits: float | None, dtype: str | None) -> float:
    """Precision of the weights that is asked for, by bits, by format, or by both where they agree [bit].

    Raises:
        CostError: An unknown format, bits that cannot be, or that are not those of the format.
    """
    if dtype is not None and dtype not in DTYPE_BITS:
        raise CostError(f"format {dtype} is not known: choose from {', '.join(DTYPE_BITS)}")
    if bits is None:
        return DTYPE_BITS[dtype] if dtype is not None else USUAL_BITS
    asked = numbers("bits", bits)
    if asked.ndim or not 0 < asked <= _MOST_BITS:
        raise CostError(f"bits = {bits}: needs one number over 0, {_MOST_BITS} at most")
    if dtype is not None and DTYPE_BITS[dtype] != asked:
        raise CostError(f"{dtype} holds weights of {DTYPE_BITS[dtype]:g} bits, not of {bits:g}: leave one of them out")
    return float(asked)


def answering_key(
    operations: Mapping[LawKey, FittedLaw], op: str, bits: float, impl: str | None, dtype: str | None
) -> LawKey:
    """The fitted key with most measurements that answers, or one that no fit has: then it is physics.

    Raises:
        CostError: An implementation that was not measured.
    """
    found = {
        k: f for k, f in operations.items() if k[0] == op and (k[2] == dtype if dtype else DTYPE_BITS[k[2]] == bits)
    }
    if impl is not None:
        known = sorted({k[1] for k in found}) or ["none"]
        found = {k: f for k, f in found.items() if k[1] == impl}
        if not found:
            raise CostError(f"{op} at {bits:g} bit has no measured implementation {impl}: known are {', '.join(known)}")
    if found:
        return max(found, key=lambda k: found[k].num_rows)
    return op, "", dtype or next((d for d, b in DTYPE_BITS.items() if b == bits), "bfloat16")
