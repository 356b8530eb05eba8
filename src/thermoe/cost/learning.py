"""What a fit learns of each operation: its laws, and what measurements say beyond them. B rows."""

from collections.abc import Mapping

import numpy as np

from thermoe.cost.correction import Correction
from thermoe.cost.correction_fit import fit_correction
from thermoe.cost.encoding import Inputs
from thermoe.cost.fitted import FittedLaw, dynamic_energy_j, fit_operation, laws_of_kernels
from thermoe.cost.observations import LawKey, Observations
from thermoe.cost.power_law import PowerLaws, fit_power_laws
from thermoe.cost.pricing import correction_inputs, correction_targets, energy_shares
from thermoe.cost.roofline import DeviceLimits
from thermoe.types import BoolArray, FloatArray

Learned = tuple[dict[LawKey, FittedLaw], dict[str, Correction]]


def learn(groups: Mapping[str, Observations], limits: DeviceLimits, seed: int) -> Learned:
    """Fitted laws by key, and corrections by operation where there are rows enough.

    Args:
        groups: Measured rows by operation.
        limits: The device.
        seed: Of everything random.
    """
    operations: dict[LawKey, FittedLaw] = {}
    corrections: dict[str, Correction] = {}
    power = _power(groups, limits)
    for op, observed in groups.items():
        laws = _fit_laws(observed, limits, power, judged=True)
        operations |= laws

        def without(
            unseen: BoolArray, op: str = op, observed: Observations = observed, laws: dict[LawKey, FittedLaw] = laws
        ) -> tuple[Inputs, FloatArray]:
            seen = observed.take(~unseen)
            part = _fit_laws(seen, limits, _power({**groups, op: seen}, limits), judged=False)
            return _described(observed, laws | part, limits, known=part)

        inputs, targets = _described(observed, laws, limits, known=laws)
        shares = energy_shares(observed, laws, limits)
        correction = fit_correction(inputs, targets, observed.groups(), seed, without, shares)
        if correction is not None:
            corrections[op] = correction
    return operations, corrections


def _power(groups: Mapping[str, Observations], limits: DeviceLimits) -> PowerLaws | None:
    return fit_power_laws(groups.values(), [dynamic_energy_j(data, limits) for data in groups.values()], limits)


def _fit_laws(
    observed: Observations, limits: DeviceLimits, power: PowerLaws | None, *, judged: bool
) -> dict[LawKey, FittedLaw]:
    alike, laws = laws_of_kernels(observed, limits), {}
    energy_j = dynamic_energy_j(observed, limits)
    for key, rows in observed.by_key().items():
        theirs = {kernel: law for (impl, kernel), law in alike.items() if impl == key[1]}
        of_key = power.law(key, observed, energy_j) if power is not None else None
        laws[key] = fit_operation(observed.take(rows), limits, of_key, theirs, judged=judged)
    return laws


def _described(
    observed: Observations, laws: dict[LawKey, FittedLaw], limits: DeviceLimits, known: Mapping[LawKey, FittedLaw]
) -> tuple[Inputs, FloatArray]:
    """What a correction sees of all rows, and what it should say (B, 2); NaN where no known law answers."""
    targets = correction_targets(observed, laws, limits)
    for key, rows in observed.by_key().items():
        if key not in known:
            targets[rows] = np.nan
    return correction_inputs(observed.cases, laws, limits), targets
