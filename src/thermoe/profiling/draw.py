"""Random values for measurements. They are normal, never zeros: power depends on the values."""

import torch
from torch import Tensor


class Draw:
    """Draws from a generator of its own: torch's default one belongs to whatever graph is captured."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self._device, self._dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Independent normal(0, 1) values."""
        return torch.randn(shape, device=self._device, dtype=self._dtype, generator=self._generator)

    def weights(self, *shape: int) -> Tensor:
        """Normal values of variance 1 / fan_in, which is the last size."""
        return self.normal(*shape).mul_(shape[-1] ** -0.5)
