"""What a prediction rests on, in words: measurements, the power of other operations, or physics alone."""

from collections.abc import Mapping
from typing import NamedTuple

from thermoe.cost.fitted import FittedLaw
from thermoe.cost.observations import LawKey
from thermoe.cost.power_law import LEAST_ROWS, ON_HOST


class Origin(NamedTuple):
    """What answers, in words, and whether no measured energy stands behind the energies."""

    source: str
    energy_is_guess: bool


def origin_of(operations: Mapping[LawKey, FittedLaw], key: LawKey, fitted_on: str, device: str) -> Origin:
    """What a law rests on.

    Args:
        operations: All that was fitted.
        key: Which of them answers; the roofline where it is none.
        fitted_on: What the fit belongs to.
        device: Name of the limits that physics has.
    """
    fitted = operations.get(key)
    if fitted is None:
        return Origin(f"roofline: {device}", energy_is_guess=True)
    source = f"fitted: {fitted_on}"
    if fitted.num_energy_rows:
        return Origin(source, energy_is_guess=False)
    elsewhere = sum(law.num_energy_rows for law in operations.values())
    if elsewhere >= LEAST_ROWS and key[1] != ON_HOST:
        return Origin(f"{source}; energy from the power of other operations", energy_is_guess=False)
    return Origin(f"{source}; energy guessed, none was measured", energy_is_guess=True)
