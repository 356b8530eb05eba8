"""Launches that begin before the one before them has ended (programmatic dependent launch, compute capability 9.0).

A kernel that is launched so may read, before it waits, what older launches than the one before it have written; it
waits before it reads anything else and before it writes, and only then lets the next one begin.
"""

from functools import cache

import torch
from torch import Tensor


def launches_overlap(tensor: Tensor) -> bool:
    """Whether the device of a tensor can."""
    return tensor.is_cuda and _capability(tensor.device.index or 0) >= (9, 0)


@cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
