"""Figures of expert MLP calls beside their parts, and of kernel types and power."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from thermoe.analysis.costs.figures_axes import Drawn
from thermoe.analysis.costs.kernel_power import KernelPower
from thermoe.analysis.costs.names import shape_name, short
from thermoe.analysis.costs.series import LOOKS
from thermoe.analysis.style import INK, panels, shared_legend, stamp
from thermoe.cost.fusing import Explanation

MOST_CALLS = 12
_PART_COLORS = {
    "dispatch": "#8a8d91",
    "dequant_unpack_op": "#cc79a7",
    "linear_fc1": "#2a86c8",
    "activation": "#e69f00",
    "linear_fc2": "#56b4e9",
    "combine": "#a39322",
}
_PART_HATCHES = {"dequant_unpack_op": "///", "activation": "...", "linear_fc2": "xxx", "combine": "\\\\\\"}
_FUSED = LOOKS[1].color


def calls_beside_parts(calls: Sequence[Explanation]) -> Drawn:
    """A stacked bar of the parts over a bar of the call, for latency and for energy."""
    if not calls:
        return None
    shown = list(calls)[:MOST_CALLS]
    has_energy = any(c.energy is not None for c in shown)
    figure, axes = panels(2 if has_energy else 1, height_in=0.8 + 0.42 * len(shown), sharey=True)
    for ax, key in zip(axes, ("latency", "energy"), strict=False):
        for place, one in enumerate(shown):
            _bars(ax, place, one, key)
        ax.set_yticks(range(len(shown)), [_call_name(one) for one in shown], fontsize=6.5)
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.axvline(1.0, color=INK, linewidth=0.7)
        ax.margins(x=0.16)
        ax.set_xlabel(f"{key} over that of the call itself")
    shared_legend(figure, axes)
    gpus = ", ".join(dict.fromkeys(one.call.row.device.gpu for one in shown))
    kinds = ", ".join(dict.fromkeys(str(one.kind) for one in shown))
    stamp(figure, f"{kinds} on {gpus}; n = {len(calls)} calls with all their parts")
    more = f" {len(calls) - len(shown)} more calls are in the table." if len(calls) > len(shown) else ""
    return figure, (
        "Expert MLP calls: the upper bar is the sum of the parts, each measured alone, the lower bar the call itself, "
        f"over which both are drawn; numbers are {'µs and mJ' if has_energy else 'µs'}." + more
    )


def _bars(ax: Axes, place: int, one: Explanation, key: str) -> None:
    begin = 0.0
    costs = (*one.call.parts, one.call.fused)
    values = [c.window_s * 1e6 if one.energy else c.latency_s * 1e6 for c in costs]
    if key == "energy":
        if one.energy is None:
            return
        values = [1e3 * (c.energy_j or 0.0) for c in costs]
    call = values[-1]
    for part, value in zip(one.call.parts, values, strict=False):
        ax.barh(
            place - 0.2, value / call, left=begin / call, height=0.34, color=_PART_COLORS[part.op], label=part.op,
            hatch=_PART_HATCHES.get(part.op), edgecolor="#fefefe", linewidth=0.4,
        )  # fmt: skip
        begin += value
    ax.barh(place + 0.2, 1.0, height=0.34, color=_FUSED, label="the call itself")
    for height, end, value in ((-0.2, begin / call, begin), (0.2, 1.0, call)):
        at = (max(end, 1.0), place + height)
        ax.annotate(short(value), at, (3, 0), textcoords="offset points", va="center", fontsize=6)


def _call_name(one: Explanation) -> str:
    row = one.call.row
    return f"{shape_name(row)} {row.impl} {row.dtype}\n{row.routed_rows} rows, {row.active_experts} experts"


def types_and_power(kernels: KernelPower) -> Drawn:
    """Correlation of each type's time with power, and the power while it ran."""
    names = [t.op_type for t in kernels.types]
    has_correlation = any(t.correlation is not None for t in kernels.types)
    figure, axes = panels(2 if has_correlation else 1, height_in=0.7 + 0.2 * len(names), sharey=True)
    for place, one in enumerate(kernels.types):
        axes[-1].barh(place, one.power_w, height=0.6, color=LOOKS[0].color)
        label: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 6.5}
        axes[-1].annotate(f"{one.power_w:.0f}", (one.power_w, place), (3, 0), **label)
        if one.correlation is not None:
            value, low, high = one.correlation
            axes[0].plot(
                [value if low is None else low, value if high is None else high],
                [place, place],
                color=LOOKS[0].color,
                linewidth=1.4,
            )
            axes[0].plot(value, place, "o", color=INK, markersize=3.5)
    axes[-1].set_xlabel("mean board power while it ran [W]")
    axes[-1].margins(x=0.12)
    if has_correlation:
        axes[0].axvline(0.0, color=INK, linewidth=0.8)
        axes[0].set_xlim(-1.05, 1.05)
        axes[0].set_xlabel("correlation of its time with the window's power")
    for ax in axes:
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
    kernel_count = sum(t.kernels for t in kernels.types)
    stamp(
        figure,
        f"power {kernels.kind}, kernel times measured; n = {kernel_count} kernels, {kernels.windows} windows of "
        f"{kernels.window_s:.3g} s, {kernels.devices} devices",
    )
    return figure, (
        "Types of kernels and board power. Left: Pearson's correlation over windows, within devices, with 90 % "
        "intervals from blocks of neighbouring windows; a correlation is no cause, and types that run side by side "
        "share it. Right: power of the whole board, which all kernels of a moment share."
        if has_correlation
        else f"Power of the whole board while each type of kernels ran. No correlation: {kernels.note}."
    )
