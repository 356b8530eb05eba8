"""Counters of the data plane: it adds on the device, the control plane drains.

Shapes: L layers, E experts, T = R rows x C columns tokens, K slots per token, token t = row * C + column.
"""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thermoe.kernels.route import Fused, LayerKnobs, RouterRows, Routing, route_logits, route_rows
from thermoe.types import FloatArray, RoutingStatistics

_NUM_SUMS = 4  # groups, tokens, gate mass kept, changed slots


@dataclass(frozen=True, slots=True)
class _Layout:
    """What all layers of one forward share.

    Attributes:
        source_T: the mask that this was made from, kept so that its identity stays its own.
        live_T1: (T, 1) 1 for a live token.
        live_C: (C,) live tokens of each batch.
        sums_2: batches with a live token, live tokens.
        offset_T1: (T, 1) where the counts of a token's batch begin; None for one batch.
    """

    source_T: Tensor | None
    columns: int
    live_T1: Tensor
    live_C: Tensor
    sums_2: Tensor
    offset_T1: Tensor | None

    def fits(self, live_T: Tensor | None, columns: int, num_tokens: int) -> bool:
        """Whether this is the layout of the forward that is running."""
        return self.source_T is live_T and self.columns == columns and self.live_T1.shape[0] == num_tokens


class DeviceCounters:
    """Counters the data plane adds to and the control plane drains.

    Beside the running sums, the last forward's distinct experts, routed rows and gate mass are
    kept per layer and column for the experiments. Sums are float64, or float32 on a device without it:
    exact up to 16.7 million counts between two drains.
    """

    def __init__(self, num_layers: int, num_experts: int, device: torch.device | str) -> None:
        self.num_layers, self.num_experts = num_layers, num_experts
        width = 2 * num_experts + _NUM_SUMS
        with torch.inference_mode(mode=False):  # else nothing outside inference mode could add to them
            self._totals = torch.zeros(num_layers, width, dtype=_sum_dtype(torch.device(device)), device=device)
        self._rows = list(self._totals)
        self._lock = threading.Lock()
        self._layout: _Layout | None = None
        self.last: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def add(
        self, layer: int, routing: Routing, gates_TE: Tensor, live_T: Tensor | None, columns: int, own_ids_TK: Tensor
    ) -> None:
        """Count one layer of one forward; `own_ids_TK` is the model's own choice."""
        ids_TK, kept_TK = routing.ids_TK, routing.kept_TK
        num_tokens, top_k = ids_TK.shape
        layout = self._layout_for(live_T, columns, num_tokens, ids_TK.device)
        own_mass_T = gates_TE.gather(1, own_ids_TK).sum(-1)
        mass_T = (gates_TE.gather(1, ids_TK) * kept_TK).sum(-1) / own_mass_T
        same_TK = (ids_TK.unsqueeze(2) == own_ids_TK.unsqueeze(1)).any(-1) & kept_TK
        # Padding may carry NaN, and one token's NaN must not spoil the sums of all.
        shares_T2 = torch.stack([mass_T.nan_to_num(nan=0.0), 1.0 - same_TK.sum(-1) / top_k], dim=1) * layout.live_T1
        shares_C2 = shares_T2.view(-1, columns, 2).sum(0)
        # Dropped slots repeat the first expert: they add zero to what is already there.
        self._count(layer, ids_TK, kept_TK * layout.live_T1, layout, shares_C2)

    def route(self, layer: int, logits_TE: Tensor, knobs: LayerKnobs, **options: Any) -> Routing:
        """Route one layer of one forward by `route_logits`, with its `options`, and count it in the same launch."""
        with self._lock:  # queued before a drain or after it, never between its reading and zeroing
            fused = route_logits(logits_TE, knobs, sums=self._rows[layer], **options)
        return self._noted(layer, fused)

    def route_rows(self, layer: int, rows: RouterRows, knobs: LayerKnobs, **options: Any) -> tuple[Tensor, Routing]:
        """The same from what the router multiplies, by `route_rows`: logits and routing."""
        with self._lock:
            logits_TE, fused = route_rows(rows, knobs, sums=self._rows[layer], **options)
        return logits_TE, self._noted(layer, fused)

    def _noted(self, layer: int, fused: Fused) -> Routing:
        assert fused.last_3C is not None, "sums were given"
        self.last[layer] = (fused.last_3C[0], fused.last_3C[1], fused.last_3C[2])
        return fused.routing

    def watch(self, layer: int, ids_TK: Tensor, live_T: Tensor | None, columns: int) -> None:
        """Count one layer of one forward in which the model's own choice was left as it is."""
        layout = self._layout_for(live_T, columns, ids_TK.shape[0], ids_TK.device)
        shares_C2 = torch.stack([layout.live_C, torch.zeros_like(layout.live_C)], dim=1)
        self._count(layer, ids_TK, layout.live_T1.expand_as(ids_TK), layout, shares_C2)

    def _count(self, layer: int, ids_TK: Tensor, used_TK: Tensor, layout: _Layout, shares_C2: Tensor) -> None:
        columns = layout.columns
        slot_TK = ids_TK if layout.offset_T1 is None else ids_TK + layout.offset_T1
        counts = torch.zeros(columns * self.num_experts, device=ids_TK.device)
        # Counts are whole numbers in float32, so the order of a parallel sum changes nothing.
        tokens_CE = counts.scatter_add_(0, slot_TK.reshape(-1), used_TK.reshape(-1)).view(columns, -1)
        loads_CE = (tokens_CE > 0).float()
        row = torch.cat([tokens_CE.sum(0), loads_CE.sum(0), layout.sums_2, shares_C2.sum(0)])
        with self._lock:
            self._rows[layer].add_(row)
        mass_C = shares_C2[:, 0] / layout.live_C.clamp_min(1.0)
        self.last[layer] = (loads_CE.sum(-1), tokens_CE.sum(-1), mass_C)

    def _layout_for(self, live_T: Tensor | None, columns: int, num_tokens: int, device: torch.device) -> _Layout:
        """The layout of this forward, made at its first layer."""
        known = self._layout
        if known is not None and known.fits(live_T, columns, num_tokens):
            return known
        live = torch.ones(num_tokens, device=device) if live_T is None else (live_T != 0).float()
        live_C = live.view(-1, columns).sum(0)
        offset_T1 = None
        if columns > 1:
            offset_T1 = (torch.arange(num_tokens, device=device) % columns * self.num_experts).unsqueeze(1)
        sums_2 = torch.stack([(live_C > 0).sum(), live_C.sum()])
        self._layout = _Layout(live_T, columns, live.unsqueeze(1), live_C, sums_2, offset_T1)
        return self._layout

    def last_forward(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(L, C) distinct experts, routed rows and gate mass kept of the last forward (waits for the device)."""
        ordered = [self.last[layer] for layer in range(self.num_layers)]
        stacked = torch.stack([torch.stack(parts) for parts in ordered]).cpu().double().numpy()
        return stacked[:, 0], stacked[:, 1], stacked[:, 2]

    def drain(self) -> RoutingStatistics:
        """Read all counters and set them to zero (waits for the device: control plane only)."""
        with self._lock:  # nothing may be added between reading and zeroing
            taken = self._totals.clone()
            self._totals.zero_()
        totals = taken.cpu().double().numpy()
        experts = self.num_experts
        sums = totals[:, 2 * experts :]
        tokens = np.maximum(sums[:, 1], 1.0)
        return RoutingStatistics(
            num_groups=round(sums[0, 0]),
            num_tokens=round(sums[0, 1]),
            tokens_per_expert=totals[:, :experts].copy(),
            loads_per_expert=totals[:, experts : 2 * experts].copy(),
            gate_mass_kept=sums[:, 2] / tokens,
            changed_slots=sums[:, 3] / tokens,
        )


def _sum_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64
