"""Synthetic tensor workloads for self-contained MoE layers.

A token is a mixture of a topic, shared with other tokens of its batch, and of noise of its own:
x = scale * (coherence * topic + sqrt(1 - coherence^2) * noise), topic and noise with unit variance
per entry. Few topics and a high coherence make a batch agree on its experts, as real text does;
many topics and a low coherence spread it over more of them.
Shapes: T tokens, D model width, M topics of a batch.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from thermoe.errors import ConfigError
from thermoe.workloads.batches import TensorBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorWorkload:
    """Definition of a tensor workload.

    Attributes:
        num_tokens: Tokens of a batch (T).
        topics_per_batch: Distinct topics in a batch (M).
        coherence: Correlation of a token with its topic, in [0, 1).
        scale: Standard deviation of an entry; a router without normalisation decides more sharply
            the larger it is.
    """

    num_tokens: int
    topics_per_batch: int
    coherence: float
    scale: float = 1.0


TENSOR_WORKLOADS: Mapping[str, TensorWorkload] = MappingProxyType(
    {
        "standard": TensorWorkload(num_tokens=32, topics_per_batch=4, coherence=0.8),
        "high_complexity": TensorWorkload(num_tokens=32, topics_per_batch=32, coherence=0.3, scale=1.5),
        "small_batch": TensorWorkload(num_tokens=4, topics_per_batch=2, coherence=0.8),
        "large_batch": TensorWorkload(num_tokens=256, topics_per_batch=16, coherence=0.8),
    }
)


class WorkloadGenerator:
    """Batches of one tensor workload, seeded.

    Batch i depends on the name, the seed, the sizes and i alone, so that a run can resume anywhere.

    Args:
        name: One of `TENSOR_WORKLOADS`.
        d_model: Width of a hidden state (D).
        num_batches: Length of the workload.
        seed: Any integer from 0; other seeds give other topics and tokens.
        num_tokens: Tokens of a batch instead of the workload's own number.

    Raises:
        ConfigError: the name is unknown or a size is not positive.
    """

    def __init__(
        self, name: str, d_model: int, *, num_batches: int, seed: int = 0, num_tokens: int | None = None
    ) -> None:
        if name not in TENSOR_WORKLOADS:
            raise ConfigError(f"unknown workload {name!r}: choose from {', '.join(TENSOR_WORKLOADS)}")
        self.name = name
        self.definition = TENSOR_WORKLOADS[name]
        self.num_tokens = self.definition.num_tokens if num_tokens is None else num_tokens
        sizes = {"d_model": d_model, "num_batches": num_batches, "num_tokens": self.num_tokens}
        for what, value in sizes.items():
            if value < 1:
                raise ConfigError(f"workload {name}: {what} = {value}, needs to be 1 or more")
        if seed < 0:
            raise ConfigError(f"workload {name}: seed = {seed}, needs to be 0 or more")
        self._d_model = d_model
        self._num_batches = num_batches
        self._seed = seed

    def __len__(self) -> int:
        return self._num_batches

    def batch(self, index: int) -> TensorBatch:
        """Batch number `index`; IndexError beyond the end."""
        if not 0 <= index < self._num_batches:
            raise IndexError(f"batch {index} of {self._num_batches}")
        work = self.definition
        # crc32, because hash() of a string changes from one process to the next.
        rng = np.random.default_rng([self._seed, zlib.crc32(self.name.encode()), index])
        topics_MD = rng.standard_normal((work.topics_per_batch, self._d_model), dtype=np.float32)
        topic_T = rng.integers(work.topics_per_batch, size=self.num_tokens)
        noise_TD = rng.standard_normal((self.num_tokens, self._d_model), dtype=np.float32)
        own = float(np.sqrt(1.0 - work.coherence**2))
        x_TD = np.float32(work.scale) * (np.float32(work.coherence) * topics_MD[topic_T] + np.float32(own) * noise_TD)
        return TensorBatch(index=index, hidden_states=torch.from_numpy(x_TD))
