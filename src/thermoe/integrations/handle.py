"""The handle of an attachment: what may be asked of it and changed while the model serves."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.integrations.arguments import refuse_wrong_types, settings_of, strategy_of
from thermoe.integrations.decoding import Decoder
from thermoe.integrations.experts_quantised import QuantisedExperts
from thermoe.integrations.figures import summary_of, with_limits
from thermoe.integrations.hooks import RouterHooks
from thermoe.integrations.serving import Driver
from thermoe.runtime.control_plane import ControlPlane
from thermoe.telemetry import EnergyWindow
from thermoe.types import Budget, RoutingStrategy

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
        self._began_overhead_s = plane.overhead_s
        driver.start()

    @property
    def attached(self) -> bool:
        """Whether the model still runs under this handle."""
        return self._attached

    def set_budget(self, budget: Budget | None = None, /, **limits: float | None) -> None:
        """Change limits while serving; the figures of the summary begin anew where any changed.

        Args:
            budget: All limits at once, instead of the ones in force.
            limits: Those to change: `power_w`, `energy_j_per_token`, `temp_c`, `latency_s`, `max_quality_loss_pct`;
                None lifts one.

        Raises:
            ConfigError: An unknown limit, one that the strategy cannot hold, or the handle is detached.
            BudgetError: The limits cannot be met; the old ones stay in force.
        """
        self._needs_attached()
        refuse_wrong_types(budget=(budget, Budget | None))
        if budget is not None and limits:
            raise ConfigError(f"a budget, and {', '.join(sorted(limits))} beside it: give one or the other")
        with self._driver.lock:
            before = self.plane.budget
            wanted = before.with_changes(**limits) if budget is None else budget
            given = limits_in(wanted) if budget is not None else [n for n, limit in limits.items() if limit is not None]
            refuse_unheld(self.plane.strategy, given)
            if wanted == before:
                return
            self._price_at_present_bits()
            self.hooks.set_knobs(self.plane.set_budget(wanted))
            self._begin_figures()

    def set_strategy(self, strategy: str, settings: Mapping[str, float] | None = None) -> None:
        """Go on with another strategy; the figures of the summary begin anew.

        Raises:
            ConfigError: It is unknown, cannot run here, or cannot hold a limit in force (lift it first).
            BudgetError: It cannot meet a limit in force.
        """
        self._needs_attached()
        with self._driver.lock:
            refuse_unheld(strategy_of(strategy), limits_in(self.plane.budget))
            self._price_at_present_bits()
            self.hooks.set_knobs(self.plane.switch(strategy_of(strategy), settings_of(settings)))
            self._begin_figures()

    def decode(self, input_ids: Tensor, *, max_new_tokens: int, **options: Any) -> Tensor:
        """Prompts and what follows them, each step one CUDA graph that reads the knobs of now: see `Decoder.decode`.

        Raises:
            ConfigError: Prompts or options that cannot be decoded, or the handle is detached.
            UnsupportedModelError: A model whose step cannot be captured.
        """
        self._needs_attached()
        return self._decoder.decode(input_ids, max_new_tokens=max_new_tokens, **options)

    def reset(self) -> None:
        """Forget everything that was learned since the attachment; the figures of the summary begin anew."""
        self._needs_attached()
        with self._driver.lock:
            self.plane.reset()
            self.hooks.set_knobs(self.plane.knobs)
            self._begin_figures()

    def summary(self) -> dict[str, Any]:
        """The keys of a strategy in summary.json, then where the figures come from.

        Figures are since the last of: attachment, change of strategy or budget, `reset`.
        """
        if self._attached:
            self._driver.poll()
        window = self._window or self._driver.monitor.peek_window("handle")
        host_s = min(time.monotonic(), self._ended_s) - self._began_s
        figures = summary_of(
            self._driver.totals,
            window,
            drawn=self._driver.drawn(),
            bits=self._driver.bits,
            overhead=(self.plane.overhead_s - self._began_overhead_s) / host_s if host_s > 0 else None,
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

    def _begin_figures(self) -> None:
        """What is counted from now on belongs to what is in force now."""
        self._driver.begin_figures()
        self._driver.monitor.end_window("handle")
        self._driver.monitor.begin_window("handle")
        self._began_s, self._began_overhead_s = time.monotonic(), self.plane.overhead_s

    def _price_at_present_bits(self) -> None:
        self.plane.bits = min(self._driver.bits, 16.0)

    def _needs_attached(self) -> None:
        if not self._attached:
            raise ConfigError("the handle is detached: attach the model again")


def limits_in(budget: Budget) -> list[str]:
    """Names of the limits that a budget has."""
    return [f.name for f in fields(budget) if getattr(budget, f.name) is not None]


def refuse_unheld(strategy: RoutingStrategy, limits: Iterable[str]) -> None:
    """Refuse limits that a strategy would not even look at.

    Raises:
        ConfigError: It does not heed one of them.
    """
    unheld = sorted(set(limits) - _HELD.get(strategy, set()))
    if unheld and strategy is not RoutingStrategy.KERNEL_AWARE_TTHA:
        raise ConfigError(
            f"{strategy} cannot hold {', '.join(unheld)}: use {RoutingStrategy.KERNEL_AWARE_TTHA}, or lift the limit"
        )
