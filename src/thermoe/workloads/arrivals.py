"""When requests or steps arrive in an open-loop experiment: at a rate the server does not control."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from thermoe.errors import ConfigError
from thermoe.types import FloatArray


class ArrivalProcess(StrEnum):
    """How the gaps between arrivals are spread."""

    DETERMINISTIC = "deterministic"  # every gap is 1 / rate
    POISSON = "poisson"  # gaps are exponential with mean 1 / rate


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Arrival times of a stationary process.

    Attributes:
        rate_per_s: Mean arrivals per second [1/s].
        seed: Seed of the gaps (Poisson only).
        process: How the gaps are spread.

    Raises:
        ConfigError: the rate is not a positive finite number, or the seed is negative.
    """

    rate_per_s: float
    seed: int = 0
    process: ArrivalProcess = ArrivalProcess.POISSON

    def __post_init__(self) -> None:
        if not (np.isfinite(self.rate_per_s) and self.rate_per_s > 0):
            raise ConfigError(f"arrival rate {self.rate_per_s} per second: needs a positive finite number")
        if self.seed < 0:
            raise ConfigError(f"arrival seed = {self.seed}: needs to be 0 or more")

    def times(self, num_arrivals: int) -> FloatArray:
        """(num_arrivals,) ascending times [s] since the start; a shorter list is a prefix of a longer one."""
        if self.process is ArrivalProcess.DETERMINISTIC:
            return np.arange(1, num_arrivals + 1, dtype=np.float64) / self.rate_per_s
        gaps_s = np.random.default_rng(self.seed).exponential(1.0 / self.rate_per_s, size=num_arrivals)
        return np.cumsum(gaps_s)
