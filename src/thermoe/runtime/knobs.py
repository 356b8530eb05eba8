"""Device copies of the knobs and the counters: the only two things control and data plane share.

Shapes: L layers, E experts, C batches (columns) of one forward.
"""

import numpy as np
import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.route import LayerKnobs, Routing
from thermoe.types import RoutingKnobs, RoutingStatistics

_SCALARS = ("price", "top_k", "protected_k0", "max_experts", "gate_mass", "skip_ratio")
_TABLES = ("cost", "bias", "allowed")


class DeviceKnobs:
    """Knobs in device memory; `write` replaces all of them with one asynchronous copy.

    Layout: one float32 buffer (L, 3 * E + 7) so that a single copy is atomic in stream order.
    """

    def __init__(self, knobs: RoutingKnobs, device: torch.device | str) -> None:
        self.num_layers, self.num_experts = knobs.cost.shape
        width = len(_TABLES) * self.num_experts + len(_SCALARS) + 1
        self._device = torch.device(device)
        self._buffer = torch.zeros(self.num_layers, width, dtype=torch.float32, device=self._device)
        self._staging = torch.zeros(self.num_layers, width, dtype=torch.float32, pin_memory=self._device.type == "cuda")
        self._copied = torch.cuda.Event() if self._device.type == "cuda" else None
        self.write(knobs)

    def write(self, knobs: RoutingKnobs) -> None:
        """Send new host values; returns without waiting for the device."""
        if knobs.cost.shape != (self.num_layers, self.num_experts):
            raise ConfigError(
                f"knobs for {knobs.cost.shape} (layers, experts), the model has {(self.num_layers, self.num_experts)}"
            )
        packed = np.concatenate(
            [np.asarray(getattr(knobs, name), dtype=np.float32) for name in _TABLES]
            + [np.asarray(getattr(knobs, name), dtype=np.float32)[:, None] for name in _SCALARS]
            + [np.full((self.num_layers, 1), knobs.value_power, dtype=np.float32)],
            axis=1,
        )
        if self._copied is not None:
            self._copied.synchronize()  # the staging buffer may still be on its way from the last write
        self._staging.copy_(torch.from_numpy(packed))
        self._buffer.copy_(self._staging, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        self.host = knobs

    def layer(self, index: int, *, union: bool = True) -> LayerKnobs:
        """Views of one layer's knobs; they show later writes too. `union=False` withholds union policies."""
        row, experts = self._buffer[index], self.num_experts
        tables = {name: row[i * experts : (i + 1) * experts] for i, name in enumerate(_TABLES)}
        start = len(_TABLES) * experts
        scalars = {name: row[start + i] for i, name in enumerate((*_SCALARS, "value_power"))}
        return LayerKnobs(union=union and self.host.union, **tables, **scalars)


class DeviceCounters:
    """Counters the data plane adds to and the control plane drains.

    Beside the running sums, the last forward's distinct experts, routed rows and gate mass are
    kept per layer and column for the experiments.
    """

    def __init__(self, num_layers: int, num_experts: int, device: torch.device | str) -> None:
        self.num_layers, self.num_experts = num_layers, num_experts
        shape = (num_layers, num_experts)
        self.tokens_per_expert = torch.zeros(shape, dtype=torch.float64, device=device)
        self.loads_per_expert = torch.zeros(shape, dtype=torch.float64, device=device)
        self.sums = torch.zeros(num_layers, 4, dtype=torch.float64, device=device)  # groups, tokens, mass, changed
        self.last: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def add(
        self, layer: int, routing: Routing, gates_TE: Tensor, live_T: Tensor | None, columns: int, own_ids_TK: Tensor
    ) -> None:
        """Count one layer of one forward; `own_ids_TK` is the model's own choice."""
        ids_TK, kept_TK = routing.ids_TK, routing.kept_TK
        num_tokens, top_k = ids_TK.shape
        rows = num_tokens // columns
        live = torch.ones(num_tokens, device=ids_TK.device) if live_T is None else live_T.float()
        used_TK = kept_TK.float() * live.unsqueeze(-1)
        # Dropped slots repeat the first expert: they add zero to what is already there.
        used_TE = torch.zeros(num_tokens, self.num_experts, device=ids_TK.device).scatter_add_(1, ids_TK, used_TK)
        tokens_CE = used_TE.view(rows, columns, self.num_experts).sum(0)
        own_mass_T = gates_TE.gather(1, own_ids_TK).sum(-1).clamp_min(1e-20)
        mass_T = (gates_TE.gather(1, ids_TK) * kept_TK).sum(-1) / own_mass_T * live
        own_TE = torch.zeros_like(used_TE).scatter_(1, own_ids_TK, 1.0)
        changed_T = (top_k - (own_TE.gather(1, ids_TK) * kept_TK).sum(-1)) / top_k * live
        live_C = live.view(rows, columns).sum(0)

        self.tokens_per_expert[layer] += tokens_CE.sum(0)
        self.loads_per_expert[layer] += (tokens_CE > 0).sum(0)
        self.sums[layer] += torch.stack([(live_C > 0).sum().float(), live_C.sum(), mass_T.sum(), changed_T.sum()])
        self.last[layer] = (
            (tokens_CE > 0).sum(-1).float(),
            tokens_CE.sum(-1),
            mass_T.view(rows, columns).sum(0) / live_C.clamp_min(1.0),
        )

    def last_forward(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(L, C) distinct experts, routed rows and gate mass kept of the last forward (waits for the device)."""
        ordered = [self.last[layer] for layer in range(self.num_layers)]
        stacked = torch.stack([torch.stack(parts) for parts in ordered]).cpu().double().numpy()
        return stacked[:, 0], stacked[:, 1], stacked[:, 2]

    def drain(self) -> RoutingStatistics:
        """Read all counters and set them to zero (waits for the device: control plane only)."""
        sums = self.sums.cpu().numpy().copy()
        tokens = np.maximum(sums[:, 1], 1.0)
        statistics = RoutingStatistics(
            num_groups=int(sums[0, 0]),
            num_tokens=int(sums[0, 1]),
            tokens_per_expert=self.tokens_per_expert.cpu().numpy().copy(),
            loads_per_expert=self.loads_per_expert.cpu().numpy().copy(),
            gate_mass_kept=sums[:, 2] / tokens,
            changed_slots=sums[:, 3] / tokens,
        )
        for counter in (self.sums, self.tokens_per_expert, self.loads_per_expert):
            counter.zero_()
        return statistics
