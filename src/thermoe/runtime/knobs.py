"""Device copy of the knobs: what the control plane writes and the data plane reads.

Shapes: L layers, E experts.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.route import LayerKnobs
from thermoe.runtime.counters import DeviceCounters
from thermoe.types import RoutingKnobs

__all__ = ["DeviceCounters", "DeviceKnobs"]

_NUM_TABLES = 3  # cost, bias, allowed
_NUM_SCALARS = 7  # price, top_k, protected_k0, max_experts, gate_mass, skip_ratio, value_power


class DeviceKnobs:
    """Knobs in device memory; `write` replaces all of them with one asynchronous copy.

    Layout: one float32 buffer of a row for each layer, so that a single copy is atomic in stream order. A row is
    3 * E + 7 long and padded to 16 bytes, which kernels read at once.
    """

    def __init__(self, knobs: RoutingKnobs, device: torch.device | str) -> None:
        self.num_layers, self.num_experts = knobs.cost.shape
        self._width = _NUM_TABLES * self.num_experts + _NUM_SCALARS
        self._device = torch.device(device)
        shape, pin_memory = (self.num_layers, -(-self._width // 4) * 4), self._device.type == "cuda"
        with torch.inference_mode(mode=False):  # else nothing outside inference mode could write to them
            self._buffer = torch.zeros(shape, dtype=torch.float32, device=self._device)
            self._staging = torch.zeros(shape, dtype=torch.float32, pin_memory=pin_memory)
        self._copied = torch.cuda.Event() if self._device.type == "cuda" else None
        self._views = [self._view(row[: self._width]) for row in self._buffer]
        self.write(knobs)

    def write(self, knobs: RoutingKnobs) -> None:
        """Send new host values; waits for the copy of the write before, not for this one."""
        self._check(knobs)
        packed = torch.from_numpy(_packed(knobs))
        if self._copied is not None:
            self._copied.synchronize()  # the staging buffer may still be on its way from the last write
        self._staging[:, : self._width] = packed
        self._buffer.copy_(self._staging, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        # Host values and the layers made from them are swapped as one, so that a forward in another thread that
        # began with the old values cannot leave them among the new.
        self._current: tuple[RoutingKnobs, dict[tuple[int, bool], LayerKnobs]] = (knobs, {})

    @property
    def host(self) -> RoutingKnobs:
        """The values written last."""
        return self._current[0]

    def layer(self, index: int, *, union: bool = True) -> LayerKnobs:
        """Views of one layer's knobs; they show later writes too. `union=False` withholds union policies.

        Which operations run is decided here, from the values of now. A CUDA graph that is being
        captured gets all of them, since it has to serve the values of later writes as well.
        """
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return replace(self._views[index], union=union)
        host, layers = self._current
        known = layers.get((index, union))
        if known is None:
            known = layers[index, union] = self._specialised(host, index, union=union and host.union)
        return known

    def _specialised(self, host: RoutingKnobs, index: int, *, union: bool) -> LayerKnobs:
        keeps_all = host.gate_mass[index] >= 1 and host.skip_ratio[index] <= 0
        return replace(
            self._views[index],
            union=union,
            biased=bool(host.bias[index].any() or not host.allowed[index].all()),
            priced=bool(np.isfinite(host.price[index])),
            ranked=bool(host.max_experts[index] > 0),
            slots_kept=int(host.top_k[index]) if keeps_all else 0,
        )

    def _view(self, row: Tensor) -> LayerKnobs:
        experts, start = self.num_experts, _NUM_TABLES * self.num_experts
        cost, bias, allowed = (row[i * experts : (i + 1) * experts] for i in range(_NUM_TABLES))
        price, top_k, protected_k0, max_experts, gate_mass, skip_ratio, value_power = row[start:]
        return LayerKnobs(
            price=price,
            cost=cost,
            bias=bias,
            allowed=allowed,
            top_k=top_k,
            protected_k0=protected_k0,
            max_experts=max_experts,
            gate_mass=gate_mass,
            skip_ratio=skip_ratio,
            value_power=value_power,
            union=True,
            row=row,
        )

    def _check(self, knobs: RoutingKnobs) -> None:
        if knobs.cost.shape != (self.num_layers, self.num_experts):
            raise ConfigError(
                f"knobs for {knobs.cost.shape} (layers, experts), the model has {(self.num_layers, self.num_experts)}: "
                "make them with the model's own shape"
            )
        if not np.isfinite(knobs.bias).all():
            raise ConfigError("knob bias holds an infinite entry: needed finite numbers; bar an expert by `allowed`")
        barren = np.flatnonzero(~knobs.allowed.any(axis=1))
        if barren.size:
            raise ConfigError(f"knobs allow no expert in layer {barren[0]}: allow at least one in every layer")


def _packed(knobs: RoutingKnobs) -> NDArray[np.float32]:
    """(L, 3 * E + 7) float32 rows; without a union policy every own choice counts as protected."""
    num_layers, num_experts = knobs.cost.shape
    protected = knobs.protected_k0 if knobs.union else np.full(num_layers, num_experts)
    value_power = np.full(num_layers, knobs.value_power)
    scalars = (knobs.price, knobs.top_k, protected, knobs.max_experts, knobs.gate_mass, knobs.skip_ratio, value_power)
    columns = [knobs.cost, knobs.bias, knobs.allowed, *(scalar[:, None] for scalar in scalars)]
    return np.concatenate([np.asarray(column, dtype=np.float32) for column in columns], axis=1)
