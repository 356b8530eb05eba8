"""`thermoe.attach`: one call that makes a Transformers MoE model energy-proportional, and takes it back."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import nn

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
from thermoe.integrations.experts_quantised import precision_of, quantise_experts
from thermoe.integrations.handle import Handle, limits_in, refuse_unheld
from thermoe.integrations.hooks import RouterHooks
from thermoe.integrations.inspect import find_routers
from thermoe.integrations.serving import Driver, ThreadDriver, TwinDriver
from thermoe.routing.calibration import Calibration
from thermoe.runtime.control_plane import ControlPlane
from thermoe.telemetry import DigitalTwin, GpuSystemMonitor, SimulatedSource, idle_figures, open_source

_log = logging.getLogger(__name__)


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
        strategy: A `RoutingStrategy`; the default needs a target or a calibration to save anything.
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
        moments: By experts block, what it was given on calibration text (`MomentWatch`): the copy compensates errors;
            not for fp8.

    Raises:
        UnsupportedModelError: The model cannot be attached to, or is attached already.
        ConfigError: A wrong argument, or a limit that the strategy cannot hold.
        DataError: A calibration that cannot be read, or of a model of another family.
        BudgetError: A budget that cannot be met by prediction (without a calibration: by any batch), or that an idle
            board exceeds.
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
    refuse_unheld(chosen, limits_in(budget))
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
        aimless = plane.adaptation is not None and plane.adaptation.targets.first() is None
        if aimless and loaded is None and "price" not in chosen_settings:
            _log.warning(
                f"{chosen} has no target and no calibration: it saves next to nothing; give energy_budget_j_per_token"
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
