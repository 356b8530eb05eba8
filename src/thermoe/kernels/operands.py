"""What the small operations ask of their tensors in common."""

from collections.abc import Sequence

from torch import Tensor

from thermoe.errors import ConfigError


def check_operands(what: str, tensors: Sequence[Tensor], *, one_dtype: bool = True) -> None:
    """Refuse tensors that a kernel cannot read together.

    Args:
        what: Names the tensors in the message.
        tensors: Floating point of 16 bits or more, on one device.
        one_dtype: Whether all need the dtype of the first.

    Raises:
        ConfigError: Another dtype, or several devices.
    """
    first = tensors[0]
    if any(
        not t.is_floating_point() or t.element_size() < 2 or (one_dtype and t.dtype != first.dtype) for t in tensors
    ):
        got = ", ".join(str(t.dtype) for t in tensors)
        raise ConfigError(
            f"{what} of {got}: needed {'one ' if one_dtype else ''}floating-point dtype of 16 bits or more"
        )
    if any(t.device != first.device for t in tensors):
        raise ConfigError(f"{what} on {', '.join(str(t.device) for t in tensors)}: move all to one device")
