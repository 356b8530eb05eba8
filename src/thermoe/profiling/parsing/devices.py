"""Names of one physical GPU: UUID, bus location, index. What is not known contradicts nothing."""

import re
from dataclasses import dataclass

_BUS = re.compile(r"^\s*(?:([0-9a-f]+):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.[0-9a-f])?\s*$", re.IGNORECASE)
_NOT_HEX = re.compile(r"[^0-9a-f]")
_UUID_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Device:
    """How a file names a GPU; `None` where it does not.

    Attributes:
        uuid: 32 lower-case hexadecimal digits.
        bus: "domain:bus:device" in hexadecimal without leading zeros.
        index: NVML index in a power log; CUDA ordinal in a trace, which CUDA_VISIBLE_DEVICES may have shifted.
    """

    uuid: str | None = None
    bus: str | None = None
    index: int | None = None

    def contradicts(self, other: "Device") -> bool:
        """Whether both cannot be the same GPU."""
        if self.uuid and other.uuid:
            return self.uuid != other.uuid
        return bool(self.bus and other.bus and self.bus != other.bus)

    def is_surely(self, other: "Device") -> bool:
        """Whether both are the same GPU by UUID or bus."""
        if self.uuid and other.uuid:
            return self.uuid == other.uuid
        return bool(self.bus and self.bus == other.bus)

    def __str__(self) -> str:
        return self.uuid or self.bus or ("the only device" if self.index is None else f"index {self.index}")


def normal_uuid(text: object) -> str | None:
    """A UUID without prefix, dashes and capitals: "GPU-DA16…", "da16…" and "0xDA16…" are one."""
    if not isinstance(text, str):
        return None
    lowered = text.strip().lower().removeprefix("gpu-").removeprefix("0x")
    digits = _NOT_HEX.sub("", lowered)
    return digits if len(digits) == _UUID_DIGITS and digits.strip("0") else None


def normal_bus(text: object) -> str | None:
    """A PCI address without leading zeros and function: "00000000:3B:00.0" and "0000:3b:00.0" are one."""
    match = _BUS.match(text) if isinstance(text, str) else None
    if match is None:
        return None
    domain, bus, device = (int(part or "0", 16) for part in match.groups())
    return f"{domain:x}:{bus:x}:{device:x}"
