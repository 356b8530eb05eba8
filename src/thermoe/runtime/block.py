"""A transformer block around the MoE layer, and a stack of such blocks.

Shapes: B sequences, S positions, D model width, H heads.
"""

import torch
from torch import Tensor, nn

from thermoe.errors import ConfigError
from thermoe.experts import ExpertFormat, ExpertKind
from thermoe.runtime.moe_layer import Formats, KnobPolicy, SharedRouting, SimpleMoELayer
from thermoe.types import MoEShape, SysState


class MoETransformerBlock(nn.Module):
    """Pre-norm causal self-attention, then a pre-norm `SimpleMoELayer`, each added to its input.

    Without position encoding: the block is a testbed for routing, not a language model.

    Args:
        shape: Sizes of the MoE layer.
        num_heads: Attention heads (H); D must be a multiple.
        expert_kind, formats, seed, shared, layer_index, metrics_capacity, device, dtype: As in `SimpleMoELayer`.

    Raises:
        ConfigError: the heads do not divide the width, or as in `SimpleMoELayer`.
    """

    def __init__(
        self,
        shape: MoEShape,
        *,
        num_heads: int = 4,
        expert_kind: ExpertKind = ExpertKind.SWIGLU,
        formats: Formats = ExpertFormat.DENSE,
        seed: int = 0,
        shared: SharedRouting | None = None,
        layer_index: int = 0,
        metrics_capacity: int = 1024,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        width = shape.hidden_size
        if num_heads < 1 or width % num_heads:
            raise ConfigError(f"{num_heads} heads on d_model {width}: the number of heads must divide the width")
        self.num_heads = num_heads
        self.attention_norm = nn.RMSNorm(width, device=device, dtype=dtype)
        self.qkv = nn.Linear(width, 3 * width, bias=False, device=device, dtype=dtype)
        self.out = nn.Linear(width, width, bias=False, device=device, dtype=dtype)
        self.moe_norm = nn.RMSNorm(width, device=device, dtype=dtype)
        self.moe = SimpleMoELayer(
            shape,
            expert_kind=expert_kind,
            formats=formats,
            seed=seed,
            shared=shared,
            layer_index=layer_index,
            metrics_capacity=metrics_capacity,
            device=device,
            dtype=dtype,
        )
        self._draw_attention(seed)

    @torch.no_grad()
    def _draw_attention(self, seed: int) -> None:
        # A stream of its own: the MoE layer's weights are the same with and without attention around it.
        generator = torch.Generator().manual_seed(seed + 2**32)
        for linear in (self.qkv, self.out):
            drawn = torch.randn(linear.weight.shape, generator=generator) / linear.weight.shape[1] ** 0.5
            linear.weight.copy_(drawn)

    def forward(self, x: Tensor, sys_state: SysState | None = None, *, live: Tensor | None = None) -> Tensor:
        """(B, S, D) to (B, S, D); arguments as in `SimpleMoELayer.forward`."""
        x = x + self._attend(self.attention_norm(x))
        moe: Tensor = self.moe(self.moe_norm(x), sys_state, live=live)
        return x + moe

    def _attend(self, x: Tensor) -> Tensor:
        num_sequences, num_positions, width = x.shape
        q, k, v = self.qkv(x).view(num_sequences, num_positions, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        projected: Tensor = self.out(mixed.transpose(1, 2).reshape(num_sequences, num_positions, width))
        return projected


class MoEStack(nn.Module):
    """`shape.num_layers` blocks that share knobs and counters: the self-contained model of experiments.

    Args:
        shape: Sizes and number of layers.
        num_heads, expert_kind, formats, metrics_capacity, device, dtype: As in `MoETransformerBlock`.
        seed: Layer l draws its weights from `seed * num_layers + l`.
        policy: Answers a `SysState` with knobs for all layers; see `SharedRouting`.
    """

    def __init__(
        self,
        shape: MoEShape,
        *,
        num_heads: int = 4,
        expert_kind: ExpertKind = ExpertKind.SWIGLU,
        formats: Formats = ExpertFormat.DENSE,
        seed: int = 0,
        policy: KnobPolicy | None = None,
        metrics_capacity: int = 1024,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.shared = SharedRouting(shape, device=device, policy=policy)
        self.blocks = nn.ModuleList(
            MoETransformerBlock(
                shape,
                num_heads=num_heads,
                expert_kind=expert_kind,
                formats=formats,
                seed=seed * shape.num_layers + layer,
                shared=self.shared,
                layer_index=layer,
                metrics_capacity=metrics_capacity,
                device=device,
                dtype=dtype,
            )
            for layer in range(shape.num_layers)
        )

    def forward(self, x: Tensor, sys_state: SysState | None = None, *, live: Tensor | None = None) -> Tensor:
        """(B, S, D) to (B, S, D); a (T, D) batch is run as T sequences at one position."""
        hidden = x.unsqueeze(1) if x.ndim == 2 else x
        for block in self.blocks:
            hidden = block(hidden, sys_state, live=live)
        return hidden.view_as(x)
