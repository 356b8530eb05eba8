"""A2: how far the hardware is from its targets, as a loss with named terms."""

from dataclasses import dataclass

import numpy as np

from thermoe.types import Budget

# Above its target a quantity costs energy or heat; under it, quality is being paid for nothing.
TERMS = ("power", "temp", "latency", "throughput", "energy")
# The setting of kernel_aware_ttha that overrides a limit of the budget.
TARGET_OF_LIMIT = {
    "power_w": "target_power_w",
    "energy_j_per_token": "target_energy_j_per_token",
    "temp_c": "target_temp_c",
    "latency_s": "target_latency_ms",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What one control period measured, smoothed; None where unknown."""

    power_w: float | None = None
    temp_c: float | None = None
    latency_s: float | None = None
    tokens_per_s: float | None = None
    energy_j_per_token: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """What adaptation steers to; None where there is no target."""

    power_w: float | None = None
    temp_c: float | None = None
    latency_s: float | None = None
    tokens_per_s: float | None = None
    energy_j_per_token: float | None = None

    @classmethod
    def of(cls, budget: Budget, settings: dict[str, float | None]) -> "Targets":
        """Targets of the settings; the budget's limits where the settings name none."""
        latency_ms = settings.get("target_latency_ms")
        return cls(
            power_w=settings.get("target_power_w") or budget.power_w,
            temp_c=settings.get("target_temp_c") or budget.temp_c,
            latency_s=budget.latency_s if latency_ms is None else latency_ms / 1e3,
            tokens_per_s=settings.get("target_tokens_per_s"),
            energy_j_per_token=settings.get("target_energy_j_per_token") or budget.energy_j_per_token,
        )

    def first(self) -> float | None:
        """The one that a log calls the target: of several, energy before power, heat, latency and rate."""
        ordered = (self.energy_j_per_token, self.power_w, self.temp_c, self.latency_s, self.tokens_per_s)
        return next((value for value in ordered if value is not None), None)


def log_errors(observed: Observed, targets: Targets) -> dict[str, float]:
    """log(observed / target) of each term that has both; throughput's is inverted: above 0 always means too much."""
    pairs = {
        "power": (observed.power_w, targets.power_w),
        "temp": (observed.temp_c, targets.temp_c),
        "latency": (observed.latency_s, targets.latency_s),
        "throughput": (targets.tokens_per_s, observed.tokens_per_s),
        "energy": (observed.energy_j_per_token, targets.energy_j_per_token),
    }
    return {
        name: float(np.log(got / wanted))
        for name, (got, wanted) in pairs.items()
        if got is not None and wanted is not None and got > 0 and wanted > 0
    }


def loss_terms(errors: dict[str, float], weights: dict[str, float]) -> dict[str, float]:
    """`loss_<term>` = weight x error^2 / 2 for every term, 0 without a target, and their sum `loss_total`."""
    terms = {f"loss_{name}": 0.5 * weights[name] * errors.get(name, 0.0) ** 2 for name in TERMS}
    return terms | {"loss_total": sum(terms.values())}


def state_weights(errors: dict[str, float]) -> dict[str, float]:
    """Weights that change with the state: a limit that is exceeded weighs up to four times one that is kept."""
    return {name: 1.0 + 3.0 * float(np.clip(errors.get(name, 0.0) / 0.1, 0.0, 1.0)) for name in TERMS}


def steering_error(errors: dict[str, float]) -> float:
    """The one number a price follows: the largest error, so that every target that binds is held."""
    return max(errors.values(), default=0.0)
