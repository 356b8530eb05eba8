"""Which GPUs a traced process saw: put into a trace beside its events, read again when power is joined. No pandas."""

from typing import Any

#: Member of a torch.profiler trace that holds UUID and bus of each CUDA ordinal.
DEVICES_MEMBER = "thermoe_devices"


def device_identities() -> list[dict[str, Any]]:
    """CUDA ordinal, UUID and bus of each device that this process sees; `None` where torch does not tell."""
    import torch

    devices = []
    for ordinal in range(torch.cuda.device_count()):
        properties: Any = torch.cuda.get_device_properties(ordinal)
        uuid = getattr(properties, "uuid", None)
        place = [getattr(properties, name, None) for name in ("pci_domain_id", "pci_bus_id", "pci_device_id")]
        numbers = [f"{part:02x}" for part in place if isinstance(part, int)]
        bus = f"{':'.join(numbers)}.0" if len(numbers) == len(place) else None
        devices.append({"id": ordinal, "uuid": None if uuid is None else str(uuid), "bus": bus})
    return devices
