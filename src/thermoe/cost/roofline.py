"""Limits of a device: what physics alone says an operation must take at least."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from thermoe.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceLimits:
    """Limits of a device.

    Attributes:
        name: What the figures belong to.
        bandwidth_bytes_per_s: Memory bandwidth that a long read reaches [byte/s].
        flops_per_s_16bit, flops_per_s_8bit: Sustained matrix products by precision of the inputs [1/s].
        flops_per_s_32bit: The same in float32 [1/s].
        launch_s: Least latency of a small layer inside a CUDA graph [s].
        idle_power_w: Board power with a context held and nothing running [W].
        joules_per_byte: Energy above idle of moving a byte [J/byte].
        joules_per_flop: Energy above idle of an operation in 16 bit [J].
        power_limit_w: Enforced limit by default [W].
        processors: Streaming multiprocessors, or what else takes one tile at a time.
    """

    name: str
    bandwidth_bytes_per_s: float
    flops_per_s_16bit: float
    flops_per_s_8bit: float
    flops_per_s_32bit: float
    launch_s: float
    idle_power_w: float
    joules_per_byte: float
    joules_per_flop: float
    power_limit_w: float
    processors: float

    def flops_per_s(self, bits: float) -> float:
        """Rate of matrix products whose inputs have this precision; below 8 bit they are computed in 16."""
        if bits > 16:
            return self.flops_per_s_32bit
        return self.flops_per_s_8bit if bits == 8 else self.flops_per_s_16bit

    def as_dict(self) -> dict[str, Any]:
        """All limits by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Self:
        """Inverse of `as_dict`; `DataError` if a limit is missing or cannot be right."""
        names = [f.name for f in fields(cls)]
        if not isinstance(values, dict) or any(n not in values for n in names):
            raise DataError(f"{where}: the device's limits need {', '.join(names)}")
        wrong = [n for n in names if n != "name" and not is_positive(values[n], or_zero=n == "idle_power_w")]
        if wrong:
            raise DataError(f"{where}: limits {', '.join(wrong)} must be positive finite numbers")
        return cls(**{n: values[n] for n in names})


# One H200 SXM (141 GB, 700 W), torch 2.11, driver 580: read of 4 GiB at 4.38 TB/s and 678 W, bf16 product of 8192
# at 664 TFLOP/s and 691 W, fp8 at 1207 TFLOP/s, 117 W idle with a context. Energies are above idle:
# (678 - 117) W / 4.38 TB/s and (691 - 117) W / 664 TFLOP/s. The float32 rate is the data sheet's.
H200 = DeviceLimits(
    name="NVIDIA H200",
    bandwidth_bytes_per_s=4.38e12,
    flops_per_s_16bit=664e12,
    flops_per_s_8bit=1207e12,
    flops_per_s_32bit=67e12,
    launch_s=5e-6,
    idle_power_w=117.0,
    joules_per_byte=128e-12,
    joules_per_flop=0.864e-12,
    power_limit_w=700.0,
    processors=132.0,
)


# No figure of a model is larger; what is could overflow on its way.
MOST = 1e30


def is_positive(value: Any, *, or_zero: bool = False) -> bool:
    """Whether a value read from a file is a positive finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (0 < value < MOST or (or_zero and value == 0))
