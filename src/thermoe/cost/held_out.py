"""What the cost model says of shapes that it has not seen: all rows of a shape are left out together, B rows."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from thermoe.cost.as_timed import energy_on_board_j, latency_as_timed
from thermoe.cost.boards import tells_board
from thermoe.cost.calibrated_roofline import calibrated_roofline_s
from thermoe.cost.database import CostDatabase
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.kernels import kernels_of
from thermoe.cost.known_limits import fitting_limits
from thermoe.cost.observations import Observations, group_database
from thermoe.cost.rows import CostRow
from thermoe.errors import DataError
from thermoe.types import BoolArray, FloatArray, Kind

Shape = tuple[int, int, int, int]
MIN_SHAPES = 2


@dataclass(frozen=True, slots=True)
class Predictions:
    """Measured rows of one operation beside what was predicted for them; NaN where it is not known.

    Attributes:
        measured_s, measured_j: Latency while energy was measured, or alone [s], and energy [J], (B,).
        latency_s, energy_j: Predicted [s], [J], (B,).
        latency_half, energy_half: Logarithmic half width of the 90 % intervals (B,).
        temp_c: Core temperature of the measurement [deg C], (B,).
        roofline_s, roofline_j: Calibrated roofline, its time at the mean power [s], [J], (B,).
        mean_power_j: The predicted latency at the mean power [J], (B,).
        is_fitted: Whether the model was fitted to rows of the same implementation and format (B,).
        name: Implementation, format, and kernel where there are several, as text (B,).
    """

    measured_s: FloatArray
    measured_j: FloatArray
    latency_s: FloatArray
    energy_j: FloatArray
    latency_half: FloatArray
    energy_half: FloatArray
    temp_c: FloatArray
    roofline_s: FloatArray
    roofline_j: FloatArray
    mean_power_j: FloatArray
    is_fitted: BoolArray
    name: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.measured_s)

    def take(self, rows: BoolArray) -> Self:
        """The rows of a mask (B,)."""
        return type(self)(*(getattr(self, f.name)[rows] for f in fields(self)))

    @classmethod
    def joined(cls, parts: "list[Predictions]") -> Self:
        """All rows of several, in their order."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))


def folds_of_shapes(costs: CostDatabase, num_folds: int, seed: int) -> list[set[Shape]]:
    """Shapes (D, I, E, k) of each fold; one shape each for 0 folds."""
    shapes = sorted({_shape(r) for r in costs.rows})
    count = len(shapes) if num_folds == 0 else min(num_folds, len(shapes))
    order = np.random.default_rng(seed).permutation(len(shapes))
    return [{shapes[i] for i in order[fold::count]} for fold in range(count)]


def held_out(
    costs: CostDatabase, num_folds: int = 0, seed: int = 0, report: Callable[[str], None] | None = None
) -> dict[str, Predictions]:
    """By operation: every measured row, predicted by a model fitted to the rows of other shapes.

    Rows that tell how a sweep's board stands to others (`thermoe.cost.boards`) stay in every fit, and are not judged.

    Args:
        costs: Rows of one GPU; what was not measured is left aside.
        num_folds: Folds of shapes; 0 leaves out each shape in turn.
        seed: Of the folds and of the fits.
        report: Told a line after each fold.

    Raises:
        DataError: Fewer than two shapes, or more than one GPU.
    """
    costs = CostDatabase([r for r in costs.rows if r.kind is Kind.MEASURED and not r.is_smoke])
    folds = folds_of_shapes(costs, num_folds, seed)
    if sum(map(len, folds)) < MIN_SHAPES or len(folds) < MIN_SHAPES:
        raise DataError(f"{sum(map(len, folds))} measured shape(s) in {len(folds)} fold(s): leaving shapes out needs 2")
    limits = fitting_limits(costs.rows[0].device.gpu, costs.rows)
    found: dict[str, list[Predictions]] = {}
    rows = list(zip(costs.rows, tells_board(costs.rows).tolist(), strict=True))
    for number, unseen in enumerate(folds, 1):
        seen = CostDatabase([r for r, tells in rows if tells or _shape(r) not in unseen])
        judged = [r for r, tells in rows if not tells and _shape(r) in unseen]
        left = group_database(CostDatabase(judged), told_by=seen.rows)
        known, model = group_database(seen), KernelCostModel(limits, seed=seed).fit(seen)
        for op, observed in left.items():
            found.setdefault(op, []).append(predictions(model, observed, known.get(op)))
        if report is not None:
            report(f"fold {number} of {len(folds)}: {len(unseen)} shapes left out")
    return {op: Predictions.joined(parts) for op, parts in found.items()}


def predictions(model: KernelCostModel, observed: Observations, known: Observations | None = None) -> Predictions:
    """What a fitted model says of measured rows; `known` are the rows that the rivals are fitted to."""
    priced, cases = model.predict_cases(observed.cases), observed.cases
    names = [cases.op] * len(cases), cases.impl, cases.dtype
    parts = zip(cases.impl, cases.dtype, kernels_of(cases).tolist(), strict=True)
    roofline_s = calibrated_roofline_s(known, observed)
    has_power = known is not None and np.isfinite(known.power_w).any()
    mean_w = float(np.nanmean(known.power_w)) if known is not None and has_power else np.nan
    return Predictions(
        measured_s=observed.window_s,
        measured_j=observed.energy_j,
        latency_s=latency_as_timed(model, observed, priced),
        energy_j=energy_on_board_j(model, observed, priced),
        latency_half=priced.log_error[:, 0],
        energy_half=priced.log_error[:, 1],
        temp_c=observed.temp_c,
        roofline_s=roofline_s,
        roofline_j=roofline_s * mean_w,
        mean_power_j=priced.latency_s * mean_w,
        is_fitted=np.array([key in model.operations_ for key in zip(*names, strict=True)], dtype=np.bool_),
        name=np.array([" ".join(part).strip() for part in parts]),
    )


def _shape(row: CostRow) -> Shape:
    return row.hidden_size, row.inter_size, row.num_experts, row.top_k
