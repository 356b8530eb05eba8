"""A fitted cost model as JSON: numbers and names only, so that reading one runs nothing."""

from typing import TYPE_CHECKING, Any

from thermoe.cost.cases import DTYPE_BITS
from thermoe.cost.correction import Correction
from thermoe.cost.fingerprints import as_text, from_text
from thermoe.cost.fitted import FittedLaw
from thermoe.cost.pricing import correction_sizes
from thermoe.cost.roofline import MOST
from thermoe.cost.work import OPERATIONS
from thermoe.errors import DataError

if TYPE_CHECKING:
    from thermoe.cost.kernel_cost_model import KernelCostModel

FORMAT = "thermoe.cost_model"
SCHEMA_VERSION = 7


def as_content(model: "KernelCostModel") -> dict[str, Any]:
    """Everything a model learned."""
    operations = [
        {"op": op, "impl": impl, "dtype": dtype} | fitted.as_dict()
        for (op, impl, dtype), fitted in model.operations_.items()
    ]
    return {
        "format": FORMAT,
        "schema": SCHEMA_VERSION,
        "limits": model.limits.as_dict(),
        "fitted_on": model.fitted_on_,
        "seen": None if model.seen_ is None else as_text(model.seen_),
        "reference_temp_c": model.reference_temp_c_,
        "operations": operations,
        "corrections": {op: c.as_dict() for op, c in model.corrections_.items()},
    }


def fill(model: "KernelCostModel", content: dict[str, Any], where: str) -> None:
    """Inverse of `as_content` but for the limits; anything missing or wrong is a one-line `DataError`."""
    temp_c, operations, corrections = (content.get(n) for n in ("reference_temp_c", "operations", "corrections"))
    if not isinstance(temp_c, int | float) or not abs(temp_c) < MOST or not isinstance(operations, list):
        raise DataError(f"{where}: needs a reference_temp_c and a list of operations")
    if not isinstance(corrections, dict) or not set(corrections) <= set(OPERATIONS):
        raise DataError(f"{where}: needs corrections by operation")
    model.fitted_on_, model.reference_temp_c_ = str(content.get("fitted_on", "")), float(temp_c)
    model.seen_ = None if content.get("seen") is None else from_text(content["seen"], where)
    for values in operations:
        fitted = FittedLaw.from_dict(values, where)
        op, impl, dtype = values.get("op"), values.get("impl"), values.get("dtype")
        if op not in OPERATIONS or not isinstance(impl, str) or dtype not in DTYPE_BITS:
            raise DataError(f"{where}: an operation is named {op!r}, {impl!r}, {dtype!r}; needs op, impl and dtype")
        model.operations_[op, impl, dtype] = fitted
    for op, values in corrections.items():
        model.corrections_[op] = Correction.from_dict(values, *correction_sizes(op), where=where)
