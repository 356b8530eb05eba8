"""The precisions at which the experts of a bank are read, as a user gives them."""

from collections.abc import Sequence
from numbers import Integral

from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.experts.codes import NESTED_BITS

DENSE_BITS = 16


def precisions_of(bits: int | Sequence[int] | Tensor, num_experts: int) -> list[int]:
    """One precision for each expert [bit], from one for all, or a list or 1-d integer tensor of one for each.

    Raises:
        ConfigError: another precision than 2, 4, 8 and 16, or another number of experts.
    """
    given = bits.tolist() if isinstance(bits, Tensor) else bits
    wanted = list(given) if isinstance(given, Sequence) else [given] * num_experts
    known = (*NESTED_BITS, DENSE_BITS)
    if len(wanted) != num_experts or not all(isinstance(b, Integral) and b in known for b in wanted):
        raise ConfigError(f"bits {given}: give 2, 4, 8 or 16 for each of {num_experts} experts, or one for all")
    return [int(b) for b in wanted]
