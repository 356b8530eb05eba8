"""`thermoe.attach`: one call that makes a Transformers MoE model energy-proportional, and takes it back."""

import logging
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.errors import ConfigError, DataError
from thermoe.experts import Moments
from thermoe.integrations.arguments import (
    budget_of,
    calibration_of,
    priced_shape_of,
    refuse_wrong_types,
    scope_of,
    settings_of,
    strategy_of,
)
from thermoe.integrations.decoding import Decoder
from thermoe.integrations.experts_quantised import QuantisedExperts, precision_of, quantise_experts
from thermoe.integrations.figures import summary_of, with_limits
from thermoe.integrations.hooks import RouterHooks
from thermoe.integrations.inspect import find_routers
from thermoe.integrations.serving import Driver, ThreadDriver, TwinDriver
from thermoe.routing.calibration import Calibration
from thermoe.runtime.control_plane import ControlPlane
from thermoe.telemetry import DigitalTwin, EnergyWindow, GpuSystemMonitor, SimulatedSource, idle_figures, open_source
from thermoe.types import Budget, RoutingStrategy

_log = logging.getLogger(__name__)

_HELD: dict[RoutingStrategy, set[str]] = {
    RoutingStrategy.BASELINE: {"max_quality_loss_pct"},  # it loses nothing
    RoutingStrategy.STATIC_OPTIMAL: {"max_quality_loss_pct"},
    RoutingStrategy.KERNEL_AWARE: {"max_quality_loss_pct"},
}
"""Limits that a strategy heeds; kernel_aware_ttha heeds all."""


class Handle:
    """An attachment: budgets may be set while it serves; `detach` leaves the model as it was.

    Attributes:
        hooks: The data plane in the model.
        plane: The control plane beside it.
        experts: The quantised copy of the experts, where one was asked for.
    """

    def __init__(
        self,
        hooks: RouterHooks,
        plane: ControlPlane,
        driver: Driver,
        priced_as: str,
        decoder: Decoder,
        experts: QuantisedExperts | None = None,
    ) -> None:
        self.hooks, self.plane, self._driver, self._priced_as = hooks, plane, driver, priced_as
        self.experts, self._decoder = experts, decoder
        self._window: EnergyWindow | None = None
        self._attached = True
        driver.monitor.begin_window("handle")
        self._began_s, self._ended_s = time.monotonic(), math.inf
        driver.start()

    @property
    def attached(self) -> bool:
        """Whether the model still runs under this handle."""
        return self._attached

    def set_budget(self, **limits: float | None) -> None:
        """Change limits while serving: `power_w`, `energy_j_per_token`, `temp_c`, `latency_s`, `max_quality_loss_pct`.

        Raises:
            ConfigError: An unknown limit, one that the strategy cannot hold, or the handle is detached.
            BudgetError: The limits cannot be met; the old ones stay in force.
        """
        self._needs_attached()
        with self._driver.lock:
            budget = self.plane.budget.with_changes(**limits)
            _refuse_unheld(self.plane.strategy, [name for name, limit in limits.items() if limit is not None])
            self.hooks.set_knobs(self.plane.set_budget(budget))

    def set_strategy(self, strategy: str, settings: Mapping[str, float] | None = None) -> None:
        """Go on with another strategy.

        Raises:
            ConfigError: It is unknown, cannot run here, or cannot hold a limit in force (lift it first).
            BudgetError: It cannot meet a limit in force.
        """
        self._needs_attached()
        with self._driver.lock:
            _refuse_unheld(strategy_of(strategy), _limits_of(self.plane.budget))
            self.hooks.set_knobs(self.plane.switch(strategy_of(strategy), settings_of(settings)))

    def decode(self, input_ids: Tensor, *, max_new_tokens: int, **options: Any) -> Tensor:
        """Prompts and what follows them, each step one CUDA graph that reads the knobs of now: see `Decoder.decode`.

        Raises:
            ConfigError: Prompts or options that cannot be decoded, or the handle is detached.
            UnsupportedModelError: A model whose step cannot be captured.
        """
        self._needs_attached()
        return self._decoder.decode(input_ids, max_new_tokens=max_new_tokens, **options)

    def reset(self) -> None:
        """Forget everything that was learned since the attachment."""
        self._needs_attached()
        with self._driver.lock:
            self.plane.reset()
            self.hooks.set_knobs(self.plane.knobs)

    def summary(self) -> dict[str, Any]:
        """The keys of a strategy in summary.json, so far; then where the figures come from."""
        if self._attached:
            self._driver.poll()
        window = self._window or self._driver.monitor.peek_window("handle")
        host_s = min(time.monotonic(), self._ended_s) - self._began_s
        figures = summary_of(
            self._driver.totals,
            window,
            drawn=self._driver.drawn(),
            bits=self._driver.bits,
            overhead=self.plane.overhead_s / host_s if host_s > 0 else None,
        )
        return with_limits(figures, self.plane, window.kind) | {
            "strategy": str(self.plane.strategy),
            "telemetry": str(window.kind),
            "priced_as": self._priced_as,
            "calibrated": self.plane.calibration is not None,
            "terms": dict(self.plane.terms),
        }

    def detach(self) -> None:
        """Stop and remove every hook; the model routes as it did before. May be called twice."""
        if not self._attached:
            return
        self._attached, self._ended_s = False, time.monotonic()
        try:
            self._driver.stop()
        finally:
            self.hooks.remove()
            self._decoder.forget()
            if self.experts is not None:
                self.experts.remove()
        self._driver.poll()  # what was counted since the driver's last look
        self._window = self._driver.monitor.end_window("handle")
        self._driver.monitor.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _needs_attached(self) -> None:
        if not self._attached:
            raise ConfigError("the handle is detached: attach the model again")


def attach(
    model: nn.Module,
    strategy: str = "kernel_aware_ttha",
    *,
    power_budget_w: float | None = None,
    energy_budget_j_per_token: float | None = None,
    temp_budget_c: float | None = None,
    latency_budget_ms: float | None = None,
    max_quality_loss_pct: float | None = None,
    settings: Mapping[str, float] | None = None,
    calibration: Calibration | str | Path | None = None,
    cost_model: KernelCostModel | None = None,
    telemetry: str = "auto",
    priced_as: str | None = None,
    union: str = "decode",
    interval_s: float = 0.1,
    experts: str | None = None,
    moments: Mapping[str, Moments] | None = None,
) -> Handle:
    """Attach to a loaded Transformers MoE model; `generate()` goes on working.

    Args:
        model: A model of a supported family, in evaluation, on one device.
        strategy: A `RoutingStrategy`.
        power_budget_w: Mean board power to hold [W].
        energy_budget_j_per_token: Energy per token to hold [J].
        temp_budget_c: Core temperature to hold [deg C].
        latency_budget_ms: Latency of a step to hold [ms].
        max_quality_loss_pct: Perplexity increase allowed by calibration [%]; needs a calibration.
        settings: Settings of the strategy, as `--set NAME.KEY=VALUE` on the command line.
        calibration: Of this model, or its file (`thermoe calibrate`).
        cost_model: Prices experts; the shipped one by default.
        telemetry: "auto", "nvml", "nvml:INDEX" or "simulated".
        priced_as: Shape whose costs stand in for the model's own: a name or "model"; by default
            "model" on real sensors and "qwen3-30b-a3b" on the digital twin.
        union: "decode", "positions" or "forward" (`UnionScope`).
        interval_s: Time between two readings of the sensors, and two control periods [s].
        experts: Format of a quantised copy of the experts to compute with (`EXPERT_FORMATS`); None: the model's own.
        moments: By experts block, what it was given on calibration text (`MomentWatch`): the copy compensates errors.

    Raises:
        UnsupportedModelError: The model cannot be attached to, or is attached already.
        ConfigError: A wrong argument, or a limit that the strategy cannot hold.
        DataError: A calibration that cannot be read, or of a model of another family.
        BudgetError: A budget that cannot be met by prediction, or that an idle board exceeds.
        TelemetryError: Sensors that were asked for are not there.
    """
    refuse_wrong_types(
        model=(model, nn.Module),
        calibration=(calibration, Calibration | str | Path | None),
        cost_model=(cost_model, KernelCostModel | None),
        telemetry=(telemetry, str),
        priced_as=(priced_as, str | None),
        interval_s=(interval_s, int | float),
        experts=(experts, str | None),
        moments=(moments, Mapping | None),
    )
    if moments is not None and experts is None:
        raise ConfigError("moments are for quantised experts: name a format too, such as experts='int4'")
    chosen_settings = settings_of(settings)
    routers = find_routers(model)
    on_gpu = next(routers.modules[0].parameters()).device.type == "cuda"
    chosen, scope = strategy_of(strategy), scope_of(union)
    loaded = calibration_of(calibration)
    if loaded is not None and loaded.model_type != routers.model_type:
        raise DataError(
            f"the calibration is of a {loaded.model_type} model, this one is of {routers.model_type}: "
            "make one with `thermoe calibrate`"
        )
    budget = budget_of(
        power_budget_w, energy_budget_j_per_token, temp_budget_c, latency_budget_ms, max_quality_loss_pct
    )
    _refuse_unheld(chosen, _limits_of(budget))
    if max_quality_loss_pct is not None and loaded is None:
        _log.warning("max_quality_loss_pct is given without a calibration of the model: it cannot be held")
    own_bits = 8.0 * next(model.parameters()).element_size()
    with ExitStack() as undo:  # nothing stays behind of an attachment that fails half-way
        source = open_source(telemetry, device="cuda" if on_gpu else "cpu")
        undo.callback(source.close)
        name = priced_as or ("qwen3-30b-a3b" if isinstance(source, SimulatedSource) else "model")
        priced_shape = priced_shape_of(name, routers.shape)
        plane = ControlPlane(
            strategy=chosen,
            shape=routers.shape,
            cost_model=cost_model or KernelCostModel.shipped(),
            priced_as=priced_shape,
            budget=budget,
            settings=chosen_settings,
            calibration=loaded,
            bits=min(own_bits, 16.0) if experts is None else precision_of(experts),
            idle=idle_figures(source),
        )
        hooks = RouterHooks(model, scope=scope)
        undo.callback(hooks.remove)
        hooks.set_knobs(plane.knobs)
        quantised = None if experts is None else quantise_experts(model, experts, moments=moments)
        if quantised is not None:
            undo.callback(quantised.remove)
        driver: Driver

        def precision() -> float:
            return own_bits if quantised is None else quantised.bits

        if isinstance(source, SimulatedSource):
            twin = DigitalTwin(priced_shape)
            monitor = GpuSystemMonitor(SimulatedSource(twin), interval_s)
            driver = TwinDriver(hooks, plane, twin, monitor, routers.decoder, precision=precision)
        else:
            driver = ThreadDriver(hooks, plane, GpuSystemMonitor(source, interval_s), interval_s, precision=precision)
        undo.callback(driver.stop)
        # The twin looks at every step on the host, which a graph has not.
        graph = False if isinstance(driver, TwinDriver) else None
        decoder = Decoder(model, hooks=hooks, lock=driver.lock, graph=graph)
        handle = Handle(hooks, plane, driver, name, decoder, quantised)
        undo.pop_all()
    return handle


def _limits_of(budget: Budget) -> list[str]:
    return [f.name for f in fields(budget) if getattr(budget, f.name) is not None]


def _refuse_unheld(strategy: RoutingStrategy, limits: Iterable[str]) -> None:
    """Refuse limits that a strategy would not even look at."""
    unheld = sorted(set(limits) - _HELD.get(strategy, set()))
    if unheld and strategy is not RoutingStrategy.KERNEL_AWARE_TTHA:
        raise ConfigError(
            f"{strategy} cannot hold {', '.join(unheld)}: use {RoutingStrategy.KERNEL_AWARE_TTHA}, or lift the limit"
        )
