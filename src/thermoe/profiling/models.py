"""Sizes of real MoE models: the shapes that a sweep covers, and that an evaluation leaves out one by one. No torch."""

Sizes = tuple[int, int, int, int]

MODELS: dict[str, Sizes] = {
    "qwen3-30b-a3b": (2048, 768, 128, 8),
    "mixtral-8x7b": (4096, 14336, 8, 2),
    "olmoe-1b-7b": (2048, 1024, 64, 8),
    "deepseek-v2-lite": (2048, 1408, 64, 6),
    "gpt-oss-20b": (2880, 2880, 32, 4),
    "gpt-oss-120b": (2880, 2880, 128, 4),
    "phi-3.5-moe": (4096, 6400, 16, 2),
    "qwen3-next-80b-a3b": (2048, 512, 512, 10),
    "qwen3-235b-a22b": (4096, 1536, 128, 8),
    "granite-3.0-1b-a400m": (1024, 512, 32, 8),
    "granite-3.0-3b-a800m": (1536, 512, 40, 8),
    "qwen1.5-moe-a2.7b": (2048, 1408, 60, 4),
    "ernie-4.5-21b-a3b": (2560, 1536, 64, 6),
    "hunyuan-a13b": (4096, 3072, 64, 8),
    "glm-4.5-air": (4096, 1408, 128, 8),
    "llama-4-scout": (5120, 8192, 16, 1),
    "mixtral-8x22b": (6144, 16384, 8, 2),
    "deepseek-v3-of-8-gpus": (7168, 2048, 32, 8),
    "jetmoe-8b": (2048, 5632, 8, 2),
    "dbrx": (6144, 10752, 16, 4),
}
"""(D, I, E, k): model width, expert width, routed experts of a layer (or of a GPU's share), experts per token."""

HEADS: dict[str, tuple[int, int]] = {
    "qwen3-30b-a3b": (32, 4),
    "mixtral-8x7b": (32, 8),
    "olmoe-1b-7b": (16, 16),
    "qwen3-235b-a22b": (64, 4),
    "llama-4-scout": (40, 8),
    "mixtral-8x22b": (48, 8),
}
"""(H, G): query heads and key heads of width 128."""

LINEARS: tuple[tuple[int, int], ...] = (
    *((4096, 2048), (512, 2048), (2048, 4096), (6144, 2048), (2048, 2048), (1536, 2048), (151936, 2048)),
    *((4096, 4096), (1024, 4096), (28672, 4096), (4096, 14336), (32000, 4096), (12800, 4096), (4096, 6400)),
    *((5120, 2880), (2880, 4096), (201088, 2880), (5760, 2880), (3072, 1024), (1024, 2048), (49152, 1536)),
    *((7168, 5120), (16384, 5120), (5120, 8192), (6144, 6144), (24576, 1536), (7168, 2048), (2560, 12288)),
    (8192, 8192),
)
"""(n, k) of dense layers in these models: projections of attention, heads, dense matrices."""

EXPERT_LINEARS: tuple[tuple[int, int], ...] = tuple(
    dict.fromkeys(pair for d, i, _, _ in MODELS.values() for pair in ((2 * i, d), (d, i)))
)
"""(n, k) of the matrices of a single expert."""
