"""The precisions at which the experts of a bank are read, as a user gives them."""

from collections.abc import Sequence
from numbers import Integral

from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.experts.codes import NESTED_BITS

DENSE_BITS = 16


def precisions_of(
    bits: int | Sequence[int] | Tensor, num_experts: int, known: Sequence[int] = (*NESTED_BITS, DENSE_BITS)
) -> list[int]:
    """One of the known precisions for each expert [bit], from one for all, or a list or 1-d integer tensor of one each.

    Raises:
        ConfigError: another precision, or another number of experts.
    """
    given = bits.tolist() if isinstance(bits, Tensor) else bits
    wanted = list(given) if isinstance(given, Sequence) else [given] * num_experts
    if len(wanted) != num_experts or not all(isinstance(b, Integral) and b in known for b in wanted):
        choice = f"{', '.join(str(b) for b in known[:-1])} or {known[-1]}"
        raise ConfigError(f"bits {given}: give {choice} for each of {num_experts} experts, or one for all")
    return [int(b) for b in wanted]
