"""What fusing an expert MLP saves: the sum of its parts against the measured call, and where the difference lies.

    time      sum - fused = launches + traffic + (what the parts take over their floors - what the call takes over its)
    energy    sum - fused = idle power x each of these times + energy of the bytes and of the operations saved + rest

A floor is the longer of bytes over bandwidth and operations over their rate; `traffic` is what the floors differ by.
Launches, bytes and operations are counted, not measured, so `sum - launches - traffic` is what the parts predict for
the call. A part of torch that takes several kernels has its further launches over its floor. Only Thermoe's call on a
GPU is one kernel: calls of torch's products, and of the reference on a CPU, save neither launches nor traffic.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from thermoe.cost.database import describe
from thermoe.cost.known_limits import KnownLimits, limits_of
from thermoe.cost.observations import LawKey
from thermoe.cost.parts import FUSED_IMPL, Call, Cost
from thermoe.cost.rows import CostRow
from thermoe.types import Kind

CPU = "cpu "
"""How the profiler begins the name of a device that is no GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeSplit:
    """Latency of a call and of its parts [s].

    Attributes:
        fused, parts: Of the call, and the sum of its parts.
        launches, traffic: Saved by fusing: launches, and the time of bytes and operations that are not needed.
        over_floor_parts, over_floor_fused: What each side takes beyond launches and floors.
    """

    fused: float
    parts: float
    launches: float
    traffic: float
    over_floor_parts: float
    over_floor_fused: float

    @property
    def predicted(self) -> float:
        """What the parts predict for the call."""
        return self.parts - self.launches - self.traffic


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergySplit:
    """Energy of a call and of its parts [J].

    Attributes:
        fused, parts: Of the call, and the sum of its parts.
        launches, traffic: Idle power over the time that launches, bytes and operations would have taken.
        moved, operations: Energy above idle of the bytes and of the operations that are not needed.
        over_floor: Idle power over the difference of the times beyond the floors.
        rest: Energy above idle that none of these explains.
    """

    fused: float
    parts: float
    launches: float
    traffic: float
    moved: float
    operations: float
    over_floor: float
    rest: float

    @property
    def predicted(self) -> float:
        """What the parts predict for the call."""
        return self.parts - self.launches - self.traffic - self.moved - self.operations


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """A call, its parts and the difference.

    Attributes:
        call: The call.
        kind: Predicted where any part is.
        time: None where the device's bandwidth or rate of products is not known.
        energy: None where a part or the call has no energy, or idle power is not known.
        limits: Of the device.
    """

    call: Call
    kind: Kind
    time: TimeSplit | None
    energy: EnergySplit | None
    limits: KnownLimits

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: microseconds and millijoules."""
        row, call = self.call.row, self.call
        return {
            "case": describe(row),
            "device": row.device.gpu,
            "kind": str(self.kind),
            "impl": row.impl,
            "dtype": row.dtype,
            "shape": {"D": row.hidden_size, "I": row.inter_size, "E": row.num_experts, "k": row.top_k},
            "tokens": row.tokens,
            "routed_rows": row.routed_rows,
            "active_experts": row.active_experts,
            "limits": self.limits.source,
            "fused": _cost(call.fused),
            "parts": [_cost(part) for part in call.parts],
            "latency_us": None if self.time is None else _split(self.time, 1e6),
            "energy_mj": None if self.energy is None else _split(self.energy, 1e3),
        }


def explain(call: Call, limits: KnownLimits) -> Explanation:
    """Split the difference between a complete call and its parts."""
    assert not call.missing
    costs = (call.fused, *call.parts)
    has_energy = all(c.energy_j is not None for c in costs)
    # Where energy is known, time is that of its windows: there the power limit acts on both sides.
    times_s = [c.window_s if has_energy else c.latency_s for c in costs]
    time = _time(call, times_s, limits)
    kind = Kind.PREDICTED if any(p.kind is Kind.PREDICTED for p in costs) else call.fused.kind
    energy = _energy(call, time, limits) if time is not None and has_energy else None
    return Explanation(call=call, kind=kind, time=time, energy=energy, limits=limits)


def explain_calls(calls: Sequence[Call], rows: Sequence[CostRow]) -> list[Explanation]:
    """Explanations of the calls that are complete, with the limits of their devices."""
    devices = dict.fromkeys(call.row.device.gpu for call in calls)
    limits = {gpu: limits_of(gpu, [r for r in rows if r.device.gpu == gpu]) for gpu in devices}
    return [explain(call, limits[call.row.device.gpu]) for call in calls if not call.missing]


def why_none(calls: Sequence[Call], model: str = "", fitted: Iterable[LawKey] = ()) -> str:
    """One line on why no call can be explained.

    Args:
        calls: None of them complete.
        model: Name of the model that was to predict the parts; empty for none.
        fitted: What it was fitted to.
    """
    if not calls:
        return "no expert_mlp row: measure some with thermoe profile"
    nearest = min(calls, key=lambda call: len(call.missing))
    lacking = (
        f"none of {len(calls)} expert MLP calls has all its parts; {describe(nearest.row)} lacks "
        f"{', '.join(nearest.missing)}"
    )
    if not model:
        return f"{lacking}: measure them with thermoe profile, or predict them: thermoe costs parts --model MODEL"
    wanted, keys = {part.split()[0] for part in nearest.missing}, list(fitted)
    near = [f"{op} as {impl} in {dtype}" for op, impl, dtype in keys if op in wanted]
    known = ", ".join(near or dict.fromkeys(op for op, _, _ in keys)) or "nothing"
    return (
        f"{lacking}: the model {model} does not know them either (it was fitted to {known}); measure them with thermoe "
        "profile and fit again"
    )


def floor_s(cost: Cost, limits: KnownLimits) -> float | None:
    """Least time of an operation's bytes and operations [s], without its launch; None where limits are not known."""
    if limits.bandwidth_bytes_per_s is None or limits.flops_per_s is None:
        return None
    return max(cost.bytes_moved / limits.bandwidth_bytes_per_s, cost.flops / limits.flops_per_s)


def _time(call: Call, times_s: list[float], limits: KnownLimits) -> TimeSplit | None:
    floors_s = [floor_s(c, limits) for c in (call.fused, *call.parts)]
    known_s = [f for f in floors_s if f is not None]
    if limits.launch_s is None or len(known_s) != len(floors_s):
        return None
    saved = _launches(call)
    parts_s, parts_floor_s = sum(times_s[1:]), sum(known_s[1:])
    fused_floor_s = known_s[0] if _is_fused(call) else parts_floor_s
    return TimeSplit(
        fused=times_s[0],
        parts=parts_s,
        launches=saved * limits.launch_s,
        traffic=parts_floor_s - fused_floor_s,
        over_floor_parts=parts_s - parts_floor_s - len(call.parts) * limits.launch_s,
        over_floor_fused=times_s[0] - fused_floor_s - (len(call.parts) - saved) * limits.launch_s,
    )


def _energy(call: Call, time: TimeSplit, limits: KnownLimits) -> EnergySplit | None:
    idle_w, per_byte, per_flop = limits.idle_power_w, limits.joules_per_byte, limits.joules_per_flop
    fused_j = call.fused.energy_j
    if idle_w is None or per_byte is None or per_flop is None or fused_j is None:
        return None
    parts_j = sum(p.energy_j or 0.0 for p in call.parts)
    is_fused = _is_fused(call)
    moved = per_byte * (sum(p.bytes_moved for p in call.parts) - call.fused.bytes_moved) if is_fused else 0.0
    operations = per_flop * (sum(p.flops for p in call.parts) - call.fused.flops) if is_fused else 0.0
    launches, traffic = idle_w * time.launches, idle_w * time.traffic
    over_floor = idle_w * (time.over_floor_parts - time.over_floor_fused)
    return EnergySplit(
        fused=fused_j,
        parts=parts_j,
        launches=launches,
        traffic=traffic,
        moved=moved,
        operations=operations,
        over_floor=over_floor,
        rest=parts_j - fused_j - launches - traffic - moved - operations - over_floor,
    )


def _is_fused(call: Call) -> bool:
    return call.row.impl == FUSED_IMPL and not call.row.device.gpu.startswith(CPU)


def _launches(call: Call) -> int:
    """Launches that the call saves."""
    return len(call.parts) - 1 if _is_fused(call) else 0


def _cost(cost: Cost) -> dict[str, Any]:
    return {
        "op": cost.op,
        "impl": cost.impl,
        "dtype": cost.dtype,
        "latency_us": cost.latency_s * 1e6,
        "energy_mj": None if cost.energy_j is None else cost.energy_j * 1e3,
        "bytes_moved": cost.bytes_moved,
        "flops": cost.flops,
        "kind": str(cost.kind),
        "rows": cost.rows,
    }


def _split(split: TimeSplit | EnergySplit, scale: float) -> dict[str, float]:
    terms = {name: scale * getattr(split, name) for name in split.__slots__}
    return {
        "difference": terms["parts"] - terms["fused"],
        **terms,
        "predicted_from_parts": scale * split.predicted,
        "error_pct": 100.0 * (split.predicted / split.fused - 1.0),
    }
