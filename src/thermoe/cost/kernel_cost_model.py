"""What a kernel costs in time and energy: physics corrected by measurements, physics alone where there are none."""

import copy
import json
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from thermoe.cost.database import CostDatabase, read_json_object, write_atomically
from thermoe.cost.device_state import THERMAL_RESISTANCE_C_PER_W, conditions
from thermoe.cost.fitted import FittedOperation, fit_operation
from thermoe.cost.law import Law, physical_law
from thermoe.cost.observations import LawKey, group_database, group_table
from thermoe.cost.prediction import CostArrays, CostPrediction, RoutingCost
from thermoe.cost.roofline import H200, DeviceLimits
from thermoe.cost.routing_view import routing_view
from thermoe.cost.step_constants import REST_ENERGY_J_PER_LAYER, REST_LATENCY_S_PER_LAYER
from thermoe.cost.work import OPERATIONS, expected_distinct_experts, work_of
from thermoe.errors import CostError, DataError
from thermoe.types import Estimate, Kind, MoEShape, StepOutcome, StepWork, SysState

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

FORMAT = "thermoe.cost_model"
SCHEMA_VERSION = 2
SHIPPED = "h200.costs.json"
MOE_OPERATIONS = ("router_topk", "dispatch_combine", "expert_mlp")
_DEFAULT_REFERENCE_TEMP_C = 45.0


class KernelCostModel:
    """Predicts latency, energy and power of the operations of an MoE layer.

    Follows scikit-learn: settings here, `fit` returns the model, what was learned ends in `_`. A model that
    was never fitted answers from the roofline of `limits` and says so.

    Args:
        limits: Limits of the device that costs are predicted for.

    Attributes:
        operations_: Fitted operations by (operation, implementation, bits).
        fitted_on_: GPU that the fit belongs to, empty before a fit.
        reference_temp_c_: Mean core temperature of the measurements [deg C].
    """

    def __init__(self, limits: DeviceLimits = H200) -> None:
        self.limits = limits
        self.operations_: dict[LawKey, FittedOperation] = {}
        self.fitted_on_ = ""
        self.reference_temp_c_ = _DEFAULT_REFERENCE_TEMP_C

    @staticmethod
    def shipped() -> "KernelCostModel":
        """The model of the database that comes with the package, fitted on first use; roofline only if it has none."""
        return copy.copy(_shipped())

    def fit(self, data: "CostDatabase | pd.DataFrame") -> Self:
        """Learn from a cost database of one GPU, or from a plain table of MoE layers.

        Raises:
            DataError: Nothing in it can be fitted, or it holds more than one GPU.
        """
        groups = group_database(data, tuple(OPERATIONS)) if isinstance(data, CostDatabase) else group_table(data)
        gpus = sorted({r.device.gpu for r in data.rows}) if isinstance(data, CostDatabase) else ["a table"]
        if len(gpus) > 1:
            raise DataError(f"the database holds {', '.join(gpus)}: select one GPU and fit again")
        if not groups:
            raise DataError(f"no measured row of {', '.join(OPERATIONS)} to fit: profile some first")
        temps_c = np.concatenate([g.temp_c[np.isfinite(g.temp_c)] for g in groups.values()])
        self.reference_temp_c_ = float(temps_c.mean()) if temps_c.size else _DEFAULT_REFERENCE_TEMP_C
        self.operations_ = {key: fit_operation(key[0], key[2], g, self.limits) for key, g in groups.items()}
        self.fitted_on_ = gpus[0]
        return self

    def predict(
        self,
        op: str,
        shape: MoEShape,
        routed_rows: float,
        distinct_experts: float,
        *,
        bits: int = 16,
        state: SysState | None = None,
        impl: str | None = None,
    ) -> CostPrediction:
        """Cost of one layer's operation, with 90 % intervals.

        Args:
            op: "expert_mlp", "dispatch_combine" or "router_topk".
            shape: Sizes of the layer.
            routed_rows: Token-expert pairs, tokens times top_k.
            distinct_experts: Experts touched.
            bits: Precision of the weights [bit].
            state: Temperature and power limit to predict for; as measured where None.
            impl: Implementation; the one with most measurements where None.

        Raises:
            CostError: An unknown operation or implementation, or counts that cannot be.
        """
        fitted = self._find(op, bits, impl)
        costs = self.predict_many(op, shape, routed_rows, distinct_experts, bits=bits, state=state, impl=impl)
        latency_s, energy_j = float(costs.latency_s[0]), float(costs.energy_j[0])
        latency_error = fitted.latency_log_error if fitted else None
        energy_error = fitted.energy_log_error if fitted else None
        both = None if latency_error is None or energy_error is None else float(np.hypot(latency_error, energy_error))
        power_w = energy_j / latency_s
        limit_w = max(conditions(self.limits, self.reference_temp_c_, state).power_limit_w, power_w)
        power = _estimate(power_w, both, highest=limit_w)
        rise_c = (power_w - self.limits.idle_power_w) * THERMAL_RESISTANCE_C_PER_W
        return CostPrediction(
            latency_s=_estimate(latency_s, latency_error),
            energy_j=_estimate(energy_j, energy_error),
            power_w=power,
            temp_rise_c=Estimate(max(rise_c, 0.0), None, None, Kind.PREDICTED),
            source=self._source(fitted),
            extrapolated=fitted is None or not fitted.covers(work_of(op, shape, routed_rows, distinct_experts, bits)),
        )

    def predict_many(
        self,
        op: str,
        shape: MoEShape,
        routed_rows: "ArrayLike",
        distinct_experts: "ArrayLike",
        *,
        bits: float = 16,
        state: SysState | None = None,
        impl: str | None = None,
    ) -> CostArrays:
        """As `predict` without intervals, over arrays that broadcast to (B,)."""
        work = work_of(op, shape, routed_rows, distinct_experts, bits)
        law = self._law(op, bits, impl)
        return conditions(self.limits, self.reference_temp_c_, state).apply(
            law.latency_s(work), law.dynamic_energy_j(work)
        )

    def predict_step(
        self, work: StepWork, priced_as: MoEShape | None = None, state: SysState | None = None
    ) -> StepOutcome:
        """A whole model step: all parts of all MoE layers, and the rest of the step from `step_constants`.

        Args:
            work: What the step did.
            priced_as: Price it as this model's layers instead of its own.
            state: Conditions, as in `predict`.
        """
        work = work if priced_as is None else work.priced_as(priced_as)
        parts = {
            op: self.predict_many(op, work.shape, work.routed_rows, work.distinct_experts, bits=work.bits, state=state)
            for op in MOE_OPERATIONS
        }
        moe_s = sum(float(p.latency_s.sum()) for p in parts.values())
        moe_j = sum(float(p.energy_j.sum()) for p in parts.values())
        rest_s = REST_LATENCY_S_PER_LAYER * work.shape.num_layers
        rest_j = REST_ENERGY_J_PER_LAYER * work.shape.num_layers
        return StepOutcome(
            latency_s=moe_s + rest_s,
            energy_j=moe_j + rest_j,
            kind=Kind.PREDICTED,
            extra={"moe_latency_s": moe_s, "moe_energy_j": moe_j, "rest_latency_s": rest_s, "rest_energy_j": rest_j},
        )

    def get_cost(
        self,
        op_type: str,
        batch_size: int,
        *,
        shape: MoEShape,
        distinct_experts: float | None = None,
        bits: int = 16,
        state: SysState | None = None,
    ) -> CostPrediction:
        """`predict` by tokens; experts touched are those of random routing unless they are given."""
        if batch_size < 1:
            raise CostError(f"batch_size = {batch_size}: needs at least 1 token")
        if distinct_experts is None:
            distinct_experts = float(expected_distinct_experts(shape.num_experts, shape.top_k, batch_size))
        return self.predict(op_type, shape, batch_size * shape.top_k, distinct_experts, bits=bits, state=state)

    def routing_cost(
        self, shape: MoEShape, num_tokens: int, state: SysState | None = None, bits: float = 16
    ) -> RoutingCost:
        """The convex view that routing uses; its distance to `predict` is part of it."""
        if num_tokens < 1:
            raise CostError(f"num_tokens = {num_tokens}: needs at least 1")
        at = conditions(self.limits, self.reference_temp_c_, state)
        source = self._source(self._find("expert_mlp", bits, None))
        return routing_view(self._law("expert_mlp", bits, None), at, shape, num_tokens, bits, source)

    def cost_per_expert(
        self, shape: MoEShape, loads: "ArrayLike", state: SysState | None = None, bits: float = 16
    ) -> CostArrays:
        """Cost of each expert under its load in rows, (..., E): c [n >= 1] + phi(n) of `routing_cost`."""
        n = np.asarray(loads, dtype=np.float64)
        if not n.size or n.shape[-1] != shape.num_experts or not np.isfinite(n).all() or (n < 0).any():
            raise CostError(f"loads of shape {n.shape}: need (..., {shape.num_experts}), finite and not negative")
        tokens = n.sum(axis=-1).mean() / shape.top_k
        return self.routing_cost(shape, max(1, round(float(tokens))), state, bits).per_expert(n)

    def save(self, path: Path) -> None:
        """Write the fitted model as JSON."""
        operations = [
            {"op": op, "impl": impl, "bits": bits} | fitted.as_dict()
            for (op, impl, bits), fitted in self.operations_.items()
        ]
        content = {
            "format": FORMAT,
            "schema": SCHEMA_VERSION,
            "limits": self.limits.as_dict(),
            "fitted_on": self.fitted_on_,
            "reference_temp_c": self.reference_temp_c_,
            "operations": operations,
        }
        write_atomically(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a saved model; a file that is missing, truncated or of another kind is a one-line `DataError`."""
        content = read_json_object(path, FORMAT, SCHEMA_VERSION)
        model = cls(DeviceLimits.from_dict(content.get("limits"), str(path)))
        temp_c, operations = content.get("reference_temp_c"), content.get("operations")
        if not isinstance(temp_c, int | float) or not np.isfinite(temp_c) or not isinstance(operations, list):
            raise DataError(f"{path}: needs a reference_temp_c and a list of operations")
        model.fitted_on_, model.reference_temp_c_ = str(content.get("fitted_on", "")), float(temp_c)
        for values in operations:
            fitted = FittedOperation.from_dict(values, str(path))
            op, impl, bits = values.get("op"), values.get("impl"), values.get("bits")
            if op not in OPERATIONS or not isinstance(impl, str) or not isinstance(bits, int):
                raise DataError(f"{path}: an operation is named {op!r}, {impl!r}, {bits!r}; needs op, impl and bits")
            model.operations_[op, impl, bits] = fitted
        return model

    def _find(self, op: str, bits: float, impl: str | None) -> FittedOperation | None:
        found = {k: f for k, f in self.operations_.items() if k[0] == op and k[2] == bits}
        if impl is not None:
            if (op, impl, bits) not in found:
                known = ", ".join(k[1] for k in found) or "none"
                raise CostError(f"{op} at {bits:g} bit has no measured implementation {impl}: known are {known}")
            return found[op, impl, int(bits)]
        return max(found.values(), key=lambda f: f.num_rows, default=None)

    def _law(self, op: str, bits: float, impl: str | None) -> Law:
        fitted = self._find(op, bits, impl)
        return fitted.law if fitted else physical_law(self.limits, bits)

    def _source(self, fitted: FittedOperation | None) -> str:
        return f"fitted: {self.fitted_on_}" if fitted else f"roofline: {self.limits.name}"


@lru_cache(maxsize=1)
def _shipped() -> KernelCostModel:
    file = resources.files("thermoe.cost.data") / SHIPPED
    if not file.is_file():
        return KernelCostModel()
    with resources.as_file(file) as path:
        return KernelCostModel().fit(CostDatabase.load(path))


def _estimate(value: float, log_error: float | None, highest: float | None = None) -> Estimate:
    if log_error is None:
        return Estimate(value, None, None, Kind.PREDICTED)
    high = value * np.exp(log_error)
    return Estimate(
        value, float(value * np.exp(-log_error)), float(high if highest is None else min(high, highest)), Kind.PREDICTED
    )
