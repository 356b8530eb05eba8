"""What a kernel costs in time and energy: physics corrected by measurements, physics alone where there are none."""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from thermoe.cost.cases import Cases
from thermoe.cost.correction import Correction
from thermoe.cost.database import CostDatabase, read_json_object, write_atomically
from thermoe.cost.device_state import THERMAL_RESISTANCE_C_PER_W, conditions
from thermoe.cost.fingerprints import cases_and_shapes
from thermoe.cost.fitted import FittedLaw
from thermoe.cost.kernels import kernels_of
from thermoe.cost.law import physical_law
from thermoe.cost.layer_costs import LayerCosts
from thermoe.cost.learning import learn
from thermoe.cost.model_file import FORMAT, SCHEMA_VERSION, as_content, fill
from thermoe.cost.observations import LawKey, Observations
from thermoe.cost.origin import Origin, origin_of
from thermoe.cost.prediction import CostArrays, CostPrediction, RoutingCost, estimate
from thermoe.cost.pricing import Pricing, price, rows_by_key
from thermoe.cost.questions import (
    answering_key,
    checked_tokens,
    loads_of,
    numbers,
    one_case,
    precision_and_law,
    refuse_impossible,
    weight_bits,
)
from thermoe.cost.roofline import H200, DeviceLimits
from thermoe.cost.routing_view import routing_view
from thermoe.cost.shipped import shipped_model
from thermoe.cost.sources import A_TABLE, observations_of
from thermoe.cost.steps import price_step
from thermoe.cost.tables import group_arrays
from thermoe.cost.work import cases_of, check_shape, expected_distinct_experts
from thermoe.errors import CostError
from thermoe.types import Estimate, IntArray, Kind, MoEShape, StepOutcome, StepWork, SysState

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from thermoe.cost.sources import Sources

_DEFAULT_REFERENCE_TEMP_C = 45.0


class KernelCostModel:
    """Predicts latency, energy and power of the operations of an MoE model.

    Follows scikit-learn: settings here, `fit` returns the model, what was learned ends in `_`. A model that
    was never fitted answers from the roofline of `limits` and says so.

    Args:
        limits: Limits of the device that costs are predicted for.
        seed: Of everything random in a fit.

    Attributes:
        operations_: Fitted laws by (operation, implementation, format of the weights).
        corrections_: What was learned beyond the laws, by operation.
        fitted_on_: GPU that the fit belongs to, empty before a fit.
        seen_: Numbers (`thermoe.cost.fingerprints`) of its cases and shapes; None in a file that does not tell.
        reference_temp_c_: Mean core temperature of the measurements [deg C].
    """

    def __init__(self, limits: DeviceLimits = H200, seed: int = 0) -> None:
        self.limits, self.seed = limits, seed
        self.operations_: dict[LawKey, FittedLaw] = {}
        self.corrections_: dict[str, Correction] = {}
        self.fitted_on_ = ""
        self.seen_: IntArray | None = np.zeros(0, dtype=np.int64)
        self.reference_temp_c_ = _DEFAULT_REFERENCE_TEMP_C

    @staticmethod
    def shipped() -> "KernelCostModel":
        """The model that comes with the package, fitted to the database that does; read on first use."""
        return copy.copy(_shipped())

    def fit(
        self,
        data: "Sources | None",
        X_shape: "pd.DataFrame | None" = None,
        y_latency: "ArrayLike | None" = None,
        y_energy: "ArrayLike | None" = None,
    ) -> Self:
        """Learn from a cost database of one GPU, from a plain table, or from telemetry, shapes and targets apart.

        Args:
            data: Database, plain table, or several of different operations; with `X_shape`, the telemetry of each row
                instead: a table that may hold `temp_c`, or None.
            X_shape: Shapes of each row, columns as in a plain table.
            y_latency: Latency of each row (B,) [s].
            y_energy: Energy of each row (B,) [J], NaN where not measured; None for no row.

        Raises:
            DataError: Nothing in it can be fitted, or it holds more than one GPU.
            CostError: A large table, and scikit-learn is not installed.
        """
        if X_shape is not None:
            telemetry = None if isinstance(data, CostDatabase | Sequence) else data
            groups, gpu = group_arrays(telemetry, X_shape, y_latency, y_energy), A_TABLE
        else:
            groups, gpu = observations_of(data)
        self._learn(groups)
        self.fitted_on_ = gpu
        return self

    def predict(
        self,
        op: str,
        shape: MoEShape,
        routed_rows: float,
        distinct_experts: float,
        *,
        bits: float | None = None,
        state: SysState | None = None,
        impl: str | None = None,
        dtype: str | None = None,
        context: int = 1,
    ) -> CostPrediction:
        """Cost of one layer's operation, with 90 % intervals.

        Args:
            op: Operation of `thermoe.cost.work.OPERATIONS`.
            shape: Sizes of the layer; what they mean for other operations stands there too.
            routed_rows: Token-expert pairs, tokens times top_k.
            distinct_experts: Experts touched, no more than there are or than rows.
            bits: Precision of the weights [bit]; where None of `dtype`, else 16, or the most measured if 16 is not.
            state: Temperature and power limit to predict for; as measured where None.
            impl: Implementation; the one with most measurements where None.
            dtype: Format of the weights; any measured one of these bits where None.
            context: Positions in the cache of keys and values.

        Raises:
            CostError: An unknown operation, implementation or format, or bits and counts that cannot be.
        """
        bits, key = precision_and_law(self.operations_, op, bits, impl, dtype)
        rows, distinct = one_case(routed_rows, distinct_experts)
        cases = cases_of(op, shape, rows, distinct, impl=key[1], dtype=key[2], context=context)
        refuse_impossible(shape.num_experts, rows, distinct)
        pricing = self._price(cases, key, state, bits)
        power_w = float(pricing.energy_j[0] / pricing.latency_s[0])
        limit_w = max(conditions(self.limits, self.reference_temp_c_, state).power_limit_w, power_w)
        misses = pricing.log_error[0] if key in self.operations_ else np.full(2, np.nan)
        origin = self._origin(key)
        rise_c = (power_w - self.limits.idle_power_w) * THERMAL_RESISTANCE_C_PER_W
        return CostPrediction(
            latency_s=estimate(float(pricing.latency_s[0]), misses[0]),
            energy_j=estimate(float(pricing.energy_j[0]), misses[1]),
            power_w=estimate(power_w, float(np.hypot(*misses)), highest=limit_w),
            temp_rise_c=Estimate(max(rise_c, 0.0), None, None, Kind.PREDICTED),
            source=origin.source,
            extrapolated=not bool(pricing.is_covered[0]),
            energy_is_guess=origin.energy_is_guess,
        )

    def predict_many(
        self,
        op: str,
        shape: MoEShape,
        routed_rows: "ArrayLike",
        distinct_experts: "ArrayLike",
        *,
        bits: float | None = None,
        state: SysState | None = None,
        impl: str | None = None,
        dtype: str | None = None,
        any_counts: bool = False,
    ) -> CostArrays:
        """As `predict` without intervals, over arrays that broadcast to (B,).

        `any_counts` also prices counts that no batch has: means, scaled to another model, one expert beyond the last.
        """
        bits, key = precision_and_law(self.operations_, op, bits, impl, dtype)
        rows, distinct = numbers("routed_rows", routed_rows), numbers("distinct_experts", distinct_experts)
        pricing = self._price(cases_of(op, shape, rows, distinct, impl=key[1], dtype=key[2]), key, state, bits)
        if not any_counts:
            refuse_impossible(shape.num_experts, rows, distinct)
        return CostArrays(pricing.latency_s, pricing.energy_j)

    def predict_cases(self, cases: Cases, state: SysState | None = None) -> Pricing:
        """Costs of any cases of one operation, with the logarithmic half width of their 90 % intervals.

        Where an implementation was not measured in a format, the one with most measurements of the same bits answers,
        with its own kernels; unless no implementation was named, such a case does not count as covered.

        Raises:
            CostError: A format that is not known.
        """
        result = Pricing.blank(len(cases))
        for (op, impl, dtype), rows in rows_by_key(cases).items():
            part, bits = cases.take(rows), weight_bits(None, dtype)
            if (op, impl, dtype) in self.operations_:
                result.put(rows, self._price(part, (op, impl, dtype), state))
                continue
            key = answering_key(self.operations_, op, bits, None, dtype if not impl else None)
            if key in self.operations_:
                part = replace(part, impl=[key[1]] * len(part), dtype=[key[2]] * len(part))
            result.put(rows, self._price(part, key, state))
            result.is_covered[rows] &= not impl
        return result

    def predict_step(
        self, work: StepWork, priced_as: MoEShape | None = None, state: SysState | None = None
    ) -> StepOutcome:
        """A whole model step: all parts of all MoE layers, and the rest of the step from `step_constants`.

        Args:
            work: What the step did.
            priced_as: Price it as this model's layers instead of its own.
            state: Conditions, as in `predict`.
        """
        measured = {op for op, _, _ in self.operations_}
        if not isinstance(work, StepWork):
            raise CostError(f"work = {work!r}: needs a StepWork of thermoe.types")
        check_shape(work.shape if priced_as is None else priced_as)
        work = work if priced_as is None else work.priced_as(priced_as)
        return price_step(partial(self.predict_many, any_counts=True), measured, work, state)

    def get_cost(
        self,
        op_type: str,
        batch_size: int,
        *,
        shape: MoEShape,
        distinct_experts: float | None = None,
        bits: float | None = None,
        state: SysState | None = None,
    ) -> CostPrediction:
        """`predict` by tokens; experts touched are those of random routing unless they are given."""
        check_shape(shape)
        tokens = checked_tokens("batch_size", batch_size)
        if distinct_experts is None:
            distinct_experts = float(expected_distinct_experts(shape.num_experts, shape.top_k, tokens))
        return self.predict(op_type, shape, tokens * shape.top_k, distinct_experts, bits=bits, state=state)

    def routing_cost(
        self, shape: MoEShape, num_tokens: int, state: SysState | None = None, bits: float | None = None
    ) -> RoutingCost:
        """The convex view that routing uses; its distance to `predict` is part of it, and None bits mean the same."""
        check_shape(shape)
        checked_tokens("num_tokens", num_tokens)
        bits, key = precision_and_law(self.operations_, "expert_mlp", bits, None, None)
        at = conditions(self.limits, self.reference_temp_c_, state)

        def accurate(rows: "ArrayLike", distinct: "ArrayLike") -> CostArrays:
            return self.predict_many("expert_mlp", shape, rows, distinct, bits=bits, state=state, any_counts=True)

        fitted, rows = self.operations_.get(key), num_tokens * shape.top_k
        asked = partial(cases_of, "expert_mlp", shape, rows, impl=key[1] if fitted else "", dtype=key[2])
        law = fitted.law_of(str(kernels_of(asked(shape.top_k))[0])) if fitted else physical_law(self.limits, bits)
        return routing_view(law, at, shape, num_tokens, bits, self._origin(key).source, accurate, asked)

    def cost_per_expert(
        self, shape: MoEShape, loads: "ArrayLike", state: SysState | None = None, bits: float | None = None
    ) -> CostArrays:
        """Cost of each expert under its load in rows, (..., E): c [n >= 1] + phi(n) of `routing_cost`."""
        check_shape(shape)
        n = loads_of(loads, shape.num_experts)
        tokens = n.sum(axis=-1).mean() / shape.top_k
        return self.routing_cost(shape, max(1, round(float(tokens))), state, bits).per_expert(n)

    def layer(self, shape: MoEShape, bits: "ArrayLike | None" = None, impl: str | None = None) -> "LayerCosts":
        """Costs by expert of a layer whose experts hold weights of these bits, one for all or one each (E,) [bit]."""
        return LayerCosts(self, shape, bits, impl)

    def save(self, path: str | Path) -> None:
        """Write the fitted model as JSON."""
        write_atomically(Path(path), json.dumps(as_content(self), separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a saved model; a file that is missing, truncated or of another kind is a one-line `DataError`."""
        content = read_json_object(Path(path), FORMAT, SCHEMA_VERSION)
        model = cls(DeviceLimits.from_dict(content.get("limits"), str(path)))
        fill(model, content, str(path))
        return model

    def _learn(self, groups: dict[str, Observations]) -> None:
        temps_c = np.concatenate([g.temp_c[np.isfinite(g.temp_c)] for g in groups.values()])
        self.reference_temp_c_ = float(temps_c.mean()) if temps_c.size else _DEFAULT_REFERENCE_TEMP_C
        self.operations_, self.corrections_ = learn(groups, self.limits, self.seed)
        self.seen_ = np.unique(np.concatenate([cases_and_shapes(g.cases).ravel() for g in groups.values()]))

    def _price(self, cases: Cases, key: LawKey, state: SysState | None, bits: float | None = None) -> Pricing:
        at = conditions(self.limits, self.reference_temp_c_, state)
        fitted = self.operations_.get(key)
        correction = self.corrections_.get(key[0]) if fitted else None
        return price(cases, fitted, correction, self.limits, at, bits)

    def _origin(self, key: LawKey) -> Origin:
        return origin_of(self.operations_, key, self.fitted_on_, self.limits.name)


@lru_cache(maxsize=1)
def _shipped() -> KernelCostModel:
    return KernelCostModel.load(shipped_model())
