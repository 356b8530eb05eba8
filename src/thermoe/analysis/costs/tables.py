"""Tables of a page of costs."""

import statistics
from collections.abc import Mapping, Sequence

from thermoe.analysis.costs.accuracy import error_rows
from thermoe.analysis.costs.kernel_power import KernelPower
from thermoe.analysis.costs.names import shape_name
from thermoe.analysis.costs.view import Source
from thermoe.analysis.tables import Column, Row, Table
from thermoe.cost.fusing import Explanation
from thermoe.cost.held_out import Predictions
from thermoe.cost.rows import CostRow

_COST, _TERM = "{:,.1f}", "{:+,.1f}"


def contents(source: Source) -> Table:
    """What a database holds of each operation, implementation and format."""
    groups: dict[tuple[str, str, str], list[CostRow]] = {}
    for op in source.ops:
        for row in source.of_op(op):
            groups.setdefault((op, row.impl, row.dtype), []).append(row)
    columns = [
        Column("op", "operation"),
        Column("impl", "by"),
        Column("dtype", "format"),
        Column("rows", "rows", "{:d}"),
        Column("shapes", "shapes", "{:d}"),
        Column("latency_us", "latency [µs]", "{:,.1f}", ends=True),
        Column("energy_rows", "energies", "{:d}"),
        Column("energy_mj", "energy [mJ]", "{:,.1f}", ends=True),
        Column("power_w", "power [W]", "{:.0f}", ends=True),
        Column("disagreement_pct", "integral [%]", "{:+.1f}"),
        Column("throttled", "throttled", "{:d}"),
    ]
    note = (
        f"{source.label}. Medians; brackets hold the least and the most. Energy is that of the board's counter; "
        "integral: how far the integral of instant power lies from it."
    )
    rows = [_content_row(*names, mine) for names, mine in groups.items()]
    return Table("contents", "What the rows are", note, columns, rows)


def errors(judged: Mapping[str, Predictions], of_what: str, name: str) -> Table:
    """Errors of predictions by operation."""
    rows = error_rows(judged)
    columns = [
        Column("op", "operation"),
        Column("quantity", "quantity"),
        Column("rows", "rows", "{:d}"),
        Column("mape_pct", "mean error [%]", "{:.1f}"),
        Column("median_pct", "median [%]", "{:.1f}"),
        Column("p90_pct", "p90 [%]", "{:.1f}"),
        Column("long_rows", "rows over 0.1 ms", "{:d}"),
        Column("long_mape_pct", "their mean error [%]", "{:.1f}"),
        Column("coverage_pct", "inside the 90 % interval [%]", "{:.0f}", ends=True),
        Column("width_pct", "mean half width [%]", "{:.1f}"),
    ]
    if any(row["roofline_pct"] is not None for row in rows):
        columns += [
            Column("roofline_pct", "calibrated roofline [%]", "{:.1f}"),
            Column("mean_power_pct", "mean power [%]", "{:.1f}"),
        ]
    note = (
        f"Predicted against measured, {of_what}: mean absolute error over rows, and brackets with the 90 % interval "
        "of a share. The roofline is fitted to the same rows as the model; its energy is its time at the mean power."
    )
    return Table(name, f"Errors: {of_what}", note, columns, rows)


def calls(explained: Sequence[Explanation]) -> list[Table]:
    """Every expert MLP call beside the sum of its parts, the difference split: a table of times, one of energies."""
    head = [
        Column("call", "call"),
        Column("parts", "parts", _COST),
        Column("fused", "call itself", _COST),
        Column("difference", "difference", _TERM),
        Column("launches", "launches", _TERM),
        Column("traffic", "traffic", _TERM),
    ]
    tail = [
        Column("predicted_from_parts", "predicted", _COST),
        Column("error_pct", "off [%]", "{:+.1f}"),
        Column("kind", "kind"),
    ]
    floors = Column("over_floor", "beyond floors", _TERM)
    moved = [Column("moved", "bytes", _TERM), Column("operations", "operations", _TERM)]
    times_note = (
        "Terms between difference and predicted add up to the difference. Launches and traffic (the time of bytes and "
        "operations that fusing saves) are counted with the limits of the device; beyond floors: what the parts take "
        "over bandwidth, rate and launch, less what the call takes over them. Predicted: parts less the first two."
    )
    energy_note = (
        "Launches, traffic and beyond floors are idle power over those times; bytes and operations are energy above "
        "idle of what fusing saves; rest is what no term explains. Predicted: parts less launches, traffic, bytes and "
        "operations."
    )
    times = [_call_row(one, "latency_us") for one in explained if one.time is not None]
    joules = [_call_row(one, "energy_mj") for one in explained if one.energy is not None]
    found = [
        Table("calls-latency", "Latency of calls and parts [µs]", times_note, [*head, floors, *tail], times),
        Table(
            "calls-energy",
            "Energy of calls and parts [mJ]",
            energy_note,
            [*head, *moved, floors, Column("rest", "rest", _TERM), *tail],
            joules,
        ),
    ]
    return [table for table in found if table.rows]


def kernel_types(kernels: KernelPower) -> Table:
    """Types of kernels with their time, energy and correlation with power."""
    rows: list[Row] = []
    for one in kernels.types:
        value, low, high = one.correlation if one.correlation is not None else (None, None, None)
        rows.append(
            {
                "op_type": one.op_type,
                "kernels": one.kernels,
                "time_pct": 100.0 * one.time_share,
                "energy_j": one.energy_j,
                "power_w": one.power_w,
                "correlation": value,
                "correlation_low": low,
                "correlation_high": high,
                "kind": kernels.kind,
            }
        )
    columns = [
        Column("op_type", "type"),
        Column("kernels", "kernels", "{:d}"),
        Column("time_pct", "of kernel time [%]", "{:.1f}"),
        Column("energy_j", "energy [J]", "{:#.3g}"),
        Column("power_w", "board power meanwhile [W]", "{:.0f}"),
        Column("correlation", "correlation with power", "{:+.2f}", ends=True),
        Column("kind", "kind of power"),
    ]
    dropped = f" {kernels.dropped} windows with hardly any kernel are left out." if kernels.dropped else ""
    why = f" No correlation: {kernels.note}." if kernels.note else ""
    note = f"{kernels.windows} windows of {kernels.window_s:.3g} s; a correlation is no cause.{dropped}{why}"
    return Table("kernel_types", "Types of kernels and power", note, columns, rows)


def _content_row(op: str, impl: str, dtype: str, rows: Sequence[CostRow]) -> Row:
    off = [
        100.0 * (r.energy_integrated_mj / r.energy_mj - 1.0)
        for r in rows
        if r.energy_mj is not None and r.energy_integrated_mj is not None
    ]
    joules = [r.energy_mj for r in rows if r.energy_mj is not None]
    return {
        "op": op,
        "impl": impl,
        "dtype": dtype,
        "rows": len(rows),
        "energy_rows": len(joules),
        "shapes": len({(r.hidden_size, r.inter_size, r.num_experts, r.top_k) for r in rows}),
        **_spread("latency_us", [r.latency_us for r in rows]),
        **_spread("energy_mj", joules),
        **_spread("power_w", [r.power_w for r in rows if r.power_w is not None]),
        "disagreement_pct": statistics.median(off) if off else None,
        "throttled": sum(bool(r.throttled) for r in rows),
    }


def _spread(name: str, values: Sequence[float]) -> Row:
    if not values:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    ends = (min(values), max(values)) if len(values) > 1 else (None, None)
    return {name: statistics.median(values), f"{name}_low": ends[0], f"{name}_high": ends[1]}


def _call_row(one: Explanation, key: str) -> Row:
    row = one.call.row
    split: Row = one.as_dict()[key]
    if "over_floor_parts" in split:
        split = split | {"over_floor": split["over_floor_parts"] - split["over_floor_fused"]}
    name = f"{shape_name(row)} {row.impl} {row.dtype}, {row.routed_rows} rows, {row.active_experts} experts"
    return {"call": name, "kind": str(one.kind)} | split
