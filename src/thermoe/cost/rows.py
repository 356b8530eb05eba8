"""One row of a cost database: what one operation cost on one device, and how that was found."""

import math
import reprlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from thermoe.errors import DataError
from thermoe.format_names import format_name
from thermoe.types import Kind

SMOKE = "smoke "
"""What the occasion of a row begins with that was timed too shortly to be a cost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceKey:
    """What a cost belongs to: the same operation differs between releases of one framework.

    Attributes:
        gpu: Name the driver gives the device, or the processor's name.
        driver: Driver release, empty on a CPU.
        torch: torch release.
        triton: Triton release, empty where there is none.
        kernel_revision: Revision of Thermoe's own operations.
    """

    gpu: str
    driver: str
    torch: str
    triton: str
    kernel_revision: str

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Self:
        """Read a key; `DataError` names what is missing."""
        if not isinstance(values, dict):
            raise DataError(f"{where}: device is {type(values).__name__}, needed an object")
        names = [f.name for f in fields(cls)]
        wrong = [n for n in names if not isinstance(values.get(n), str)]
        if wrong:
            raise DataError(f"{where}: device lacks the text {', '.join(wrong)}")
        return cls(**{n: values[n] for n in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class CostRow:
    """Cost of one execution of one operation (one layer).

    Attributes:
        device: Where it ran.
        op, impl, dtype: Operation, its implementation and the type of its weights.
        hidden_size, inter_size, num_experts, top_k: Sizes D, I, E, k.
        tokens: Tokens in the batch.
        routed_rows: Token-expert pairs.
        active_experts: Distinct experts touched.
        skew: Load of the fullest expert over the mean load of the touched ones.
        latency_us: Median latency over short rounds [us].
        latency_low_us, latency_high_us: 5th and 95th percentile of the rounds [us].
        latency_sustained_us: Mean latency while the energy window ran [us].
        energy_mj: Energy by the counter [mJ]; None where it was not measured.
        energy_integrated_mj: Energy by the integral of instant power [mJ].
        power_w: Mean board power of the window [W].
        power_limit_w: Enforced limit [W].
        temp_c: Mean core temperature of the window [deg C].
        sm_clock_mhz, memory_clock_mhz: Mean clocks of the window [MHz].
        repeats: Executions timed.
        spread_pct: (high - low) / median of the latency [%].
        throttled: Whether the clocks were held back in the window; None where not known.
        input_distribution: What the values were drawn from; power depends on it.
        flops, bytes_moved: Operations and least memory traffic of one execution.
        working_set_mb: Bytes that the timed rotation reads before it repeats [MB].
        rel_error: Relative error against float64 on the same values; None where a like case stood for it.
        kind: Measured, simulated or predicted.
        load: How rows fell on the touched experts: "random", "balanced" or "zipf".
        context: Positions in the cache of keys and values; 1 for operations without one.
        group_size: Columns of weights that share a scale; None for formats without groups.
        windows: Energy windows behind the energy figures.
        energy_spread_pct: (highest - lowest) / mean energy of these windows [%].
        occasion: When the sweep began (UTC), so that figures of several occasions can stand side by side; begins with
            `SMOKE` where it only showed that cases run.
    """

    device: DeviceKey
    op: str
    impl: str
    dtype: str
    hidden_size: int
    inter_size: int
    num_experts: int
    top_k: int
    tokens: int
    routed_rows: int
    active_experts: int
    skew: float
    latency_us: float
    latency_low_us: float
    latency_high_us: float
    repeats: int
    spread_pct: float
    input_distribution: str
    kind: Kind
    latency_sustained_us: float | None = None
    energy_mj: float | None = None
    energy_integrated_mj: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temp_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttled: bool | None = None
    flops: float | None = None
    bytes_moved: float | None = None
    working_set_mb: float | None = None
    rel_error: float | None = None
    load: str = "random"
    context: int = 1
    group_size: int | None = None
    windows: int | None = None
    energy_spread_pct: float | None = None
    occasion: str = ""

    def __post_init__(self) -> None:
        for name in _TEXTS:
            _check_text(name, getattr(self, name))
        for name in _COUNTS:
            _check_count(name, getattr(self, name))
        for name in _FIGURES:
            _check_positive(name, getattr(self, name), zero_is_fine=name in _MAY_BE_ZERO)
        for name in _OPTIONAL_FIGURES:
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name), zero_is_fine=name in _MAY_BE_ZERO)
        for name in _OPTIONAL_COUNTS:
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        if not isinstance(self.occasion, str):
            raise DataError(f"occasion = {self.occasion!r}: needs a text")
        if not isinstance(self.throttled, bool | None):
            raise DataError(f"throttled = {self.throttled!r}: needs true, false or null")
        if not self.latency_low_us <= self.latency_us <= self.latency_high_us:
            raise DataError("latency_us lies outside latency_low_us .. latency_high_us")
        if self.active_experts > min(self.num_experts, self.routed_rows):
            raise DataError(
                f"active_experts = {self.active_experts}: more than the experts or the routed rows there are"
            )

    @property
    def key(self) -> tuple[DeviceKey, str, str, str, str, int, int, int, int, int, int, int, str, int]:
        """What makes two rows the same measurement."""
        return (self.device, self.occasion, *self.case_key)

    @property
    def case_key(self) -> tuple[str, str, str, int, int, int, int, int, int, int, str, int]:
        """What was asked for, whatever the device and the occasion."""
        sizes = (self.hidden_size, self.inter_size, self.num_experts, self.top_k)
        counts = (self.tokens, self.routed_rows, self.active_experts)
        return (self.op, self.impl, self.dtype, *sizes, *counts, self.load, self.context)

    @property
    def is_smoke(self) -> bool:
        """Whether it shows that the case runs, not what it costs."""
        return self.occasion.startswith(SMOKE)

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON has it, without its device."""
        values = asdict(self) | {"kind": str(self.kind)}
        del values["device"]
        for name, usual in _LATER.items():
            if values[name] == usual:
                del values[name]
        sizes = {letter: values.pop(name) for letter, name in _SHAPE.items()}
        return {"op": values.pop("op"), "impl": values.pop("impl"), "shape": sizes, **values}

    @classmethod
    def from_dict(cls, values: Any, device: DeviceKey) -> Self:
        """Inverse of `as_dict`; unknown keys are ignored, anything missing or wrong is a `DataError`."""
        if not isinstance(values, dict) or not isinstance(values.get("shape"), dict):
            raise DataError("a row needs to be an object with a shape")
        sizes = {name: values["shape"].get(letter) for letter, name in _SHAPE.items()}
        known = {f.name for f in fields(cls)} - {"device", *_SHAPE.values()}
        flat: dict[str, Any] = {k: v for k, v in values.items() if k in known} | sizes
        try:
            flat["kind"] = Kind(str(flat.get("kind")))
        except ValueError:
            raise DataError(f"kind = {flat.get('kind')!r}: needs one of {', '.join(Kind)}") from None
        missing = sorted(f.name for f in fields(cls) if f.name in _REQUIRED and f.name not in flat)
        if missing:
            raise DataError(f"lacks {', '.join(missing)}")
        if isinstance(flat["dtype"], str):
            flat["dtype"] = format_name(flat["dtype"])
        return cls(device=device, **flat)


_LATER: dict[str, Any] = {"load": "random", "context": 1, "occasion": ""} | dict.fromkeys(
    ("group_size", "windows", "energy_spread_pct")
)
"""Fields that schema 1 began without, and what their absence means."""
_SHAPE = {"D": "hidden_size", "I": "inter_size", "E": "num_experts", "k": "top_k"}
_TEXTS = ("op", "impl", "dtype", "input_distribution", "load")
_COUNTS = (*_SHAPE.values(), "tokens", "routed_rows", "active_experts", "repeats", "context")
_OPTIONAL_COUNTS = ("group_size", "windows")
_FIGURES = ("skew", "latency_us", "latency_low_us", "latency_high_us", "spread_pct")
_LARGEST_COUNT = 2**62
# Beyond, products and ratios of figures overflow in a fit; a year is 3e13 us.
_SMALLEST_FIGURE, _LARGEST_FIGURE = 1e-30, 1e30
_MAY_BE_ZERO = ("spread_pct", "rel_error", "temp_c", "flops", "energy_spread_pct")
_OPTIONAL_FIGURES = (
    "latency_sustained_us",
    "energy_mj",
    "energy_integrated_mj",
    "power_w",
    "power_limit_w",
    "temp_c",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "flops",
    "bytes_moved",
    "working_set_mb",
    "rel_error",
    "energy_spread_pct",
)
_REQUIRED = {*_TEXTS, *_COUNTS, *_FIGURES, "kind"} - {"load", "context"}


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise DataError(f"{name} = {reprlib.repr(value)}: needs a word")


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST_COUNT:
        raise DataError(f"{name} = {reprlib.repr(value)}: needs a whole number of at least 1")


def _check_positive(name: str, value: Any, *, zero_is_fine: bool = False) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_FIGURE
    if not is_number or not math.isfinite(value) or not (value >= _SMALLEST_FIGURE or (value == 0 and zero_is_fine)):
        raise DataError(f"{name} = {reprlib.repr(value)}: needs a positive finite number, {_LARGEST_FIGURE:g} at most")


def without_smoke(rows: Iterable[CostRow]) -> list[CostRow]:
    """Rows that say what their case costs.

    Raises:
        DataError: There are rows, and all show only that their case runs.
    """
    every = list(rows)
    told = [row for row in every if not row.is_smoke]
    if every and not told:
        raise DataError(f"all {len(every)} rows show only that their case runs: measure without --smoke")
    return told
