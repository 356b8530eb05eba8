"""What a page of costs says first: where the rows come from, how far predictions are off, what fusing saves."""

from collections.abc import Sequence

from thermoe.analysis.costs.accuracy import error_rows
from thermoe.analysis.costs.kernel_power import KernelPower
from thermoe.analysis.costs.names import shape_name, short
from thermoe.analysis.costs.view import CostView, Source
from thermoe.cost.fusing import Explanation


def device_lines(view: CostView) -> list[str]:
    """A line for each device key: versions, rows, occasions."""
    lines = []
    for source in view.sources:
        for device in dict.fromkeys(r.device for r in source.rows):
            mine = [r for r in source.rows if r.device == device]
            names = (
                ("driver", device.driver),
                ("torch", device.torch),
                ("triton", device.triton),
                ("kernel revision", device.kernel_revision),
            )
            versions = ", ".join(f"{name} {value}" for name, value in names if value)
            occasions = sorted({r.occasion for r in mine} - {""})
            when = f", begun {occasions[0]}" if occasions else ""
            when += f" and on {len(occasions) - 1} more occasions" if len(occasions) > 1 else ""
            joules = sum(r.energy_mj is not None for r in mine)
            lines.append(f"{source.label} ({versions}): {len(mine)} rows, {joules} with energy{when}")
    return lines


def answers(view: CostView) -> list[str]:
    """A few sentences; never empty."""
    sentences = [_accuracy(source) for source in view.sources if source.seen or source.unseen]
    sentences += [_saved(view.calls)] if view.calls else []
    sentences += [sentence for found in view.kernels if (sentence := _kernels(found))]
    counted = ", ".join(
        f"{_number(len(s.rows), 'row')} of {_number(len(s.ops), 'operation')} {s.label}" for s in view.sources
    )
    return [f"{counted[0].upper()}{counted[1:]}.", *sentences]


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _accuracy(source: Source) -> str:
    judged, of_what = source.judged
    lines = [row for row in error_rows(judged) if row["op"] == "all" or len(judged) == 1]
    parts = []
    for row in lines:
        text = f"{row['quantity']} by {row['mape_pct']:.1f} % over {row['rows']} rows"
        if row["coverage_pct"] is not None:
            text += f" (90 % intervals hold {row['coverage_pct']:.0f} %)"
        if row["roofline_pct"] is not None:
            text += f", a calibrated roofline by {row['roofline_pct']:.1f} %"
        parts.append(text)
    return f"On {source.gpu}, {of_what}: predictions miss " + "; ".join(parts) + "."


def _saved(calls: Sequence[Explanation]) -> str:
    """The call that its parts explain best: with energy, of Thermoe's kernel."""
    one = min(calls, key=lambda c: (c.energy is None, c.call.row.impl != "thermoe", _unexplained(c)))
    row, found = one.call.row, one.as_dict()
    name = f"{shape_name(row)}, {row.impl}, {row.dtype}, {row.tokens} tokens on {row.active_experts} experts"
    split, unit = (found["energy_mj"], "mJ") if found["energy_mj"] else (found["latency_us"], "µs")
    if split is None:
        return f"{len(calls)} expert MLP calls have all their parts."
    saved = (
        f"; with what fusing saves taken off, the parts predict {short(split['predicted_from_parts'])} {unit}"
        if split["launches"]
        else ""
    )
    return (
        f"An expert MLP call ({name}; {one.kind}) takes {short(split['fused'])} {unit}, its parts one by one "
        f"{short(split['parts'])}{saved} ({split['error_pct']:+.1f} %)."
    )


def _unexplained(call: Explanation) -> float:
    """How far the parts miss the call [%]."""
    found = call.as_dict()
    split = found["energy_mj"] or found["latency_us"]
    return float("inf") if split is None else abs(float(split["error_pct"]))


def _kernels(found: KernelPower) -> str:
    known = [t for t in found.types if t.correlation is not None]
    clear = [
        t for t in known if t.correlation and t.correlation.low is not None and t.correlation.high is not None
        and t.correlation.low * t.correlation.high > 0
    ]  # fmt: skip
    if not known:
        return ""
    if not clear:
        return f"No type of kernels goes with power ({found.kind}) clearly: every interval crosses zero."
    most = max(clear, key=lambda t: abs(t.correlation.value) if t.correlation else 0.0)
    value, low, high = most.correlation or (0.0, 0.0, 0.0)
    return (
        f"Of the types of kernels, {most.op_type} goes with power ({found.kind}) most: correlation {value:+.2f} "
        f"[{low:+.2f}, {high:+.2f}] over {found.windows} windows, which is no cause."
    )
