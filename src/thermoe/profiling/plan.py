"""Which cases a sweep measures, the most important first, so that a sweep cut short is still of use."""

from thermoe.profiling.case import Case

Sizes = tuple[int, int, int, int]
QWEN3: Sizes = (2048, 768, 128, 8)
MIXTRAL: Sizes = (4096, 14336, 8, 2)
SMALL: Sizes = (384, 128, 64, 8)
GPT_OSS: Sizes = (2880, 2880, 32, 4)
DEEPSEEK_LITE: Sizes = (2048, 1408, 64, 6)
DEEPSEEK_SHARD: Sizes = (7168, 2048, 32, 8)

# (routed rows, distinct experts), energy measured.
_QWEN3_ENERGY = (
    *((128, 8), (128, 32), (128, 128), (8, 1), (8, 8), (128, 82), (1024, 128), (32768, 128)),
    *((128, 16), (128, 64), (8, 2), (8, 4), (1024, 8), (1024, 32), (32768, 8), (512, 125)),
    *((128, 96), (32, 8), (32, 32), (512, 32), (1024, 64), (32768, 64)),
)
_OTHERS_ENERGY: tuple[tuple[Sizes, tuple[tuple[int, int], ...]], ...] = (
    (MIXTRAL, ((32, 2), (32, 8), (8192, 8))),
    (DEEPSEEK_LITE, ((96, 16), (96, 54))),
    (GPT_OSS, ((64, 8), (64, 28))),
    (DEEPSEEK_SHARD, ((128, 8), (128, 32))),
    (SMALL, ((128, 16), (128, 42), (8, 8))),
)
_LATENCY_ONLY: tuple[tuple[Sizes, tuple[tuple[int, int], ...]], ...] = (
    (MIXTRAL, ((2, 1), (2, 2), (32, 4), (512, 8))),
    (DEEPSEEK_LITE, ((6, 6), (96, 32), (384, 64), (24576, 64))),
    (GPT_OSS, ((4, 4), (256, 32), (16384, 32))),
    (DEEPSEEK_SHARD, ((8, 8), (1024, 32), (32768, 32))),
    (SMALL, ((128, 8), (128, 32), (512, 64), (32768, 64))),
)


def h200_plan() -> list[Case]:
    """About 90 cases for a data-centre GPU; the default plan of `thermoe profile` on CUDA."""
    calibration = [
        expert_case("copy", "torch", (2048, 2048, 1, 1), 1 << 19, 1),
        expert_case("matmul", "torch", (8192, 8192, 1, 1), 8192, 1),
    ]
    main = [expert_case("expert_mlp", "grouped_mm", QWEN3, rows, experts) for rows, experts in _QWEN3_ENERGY]
    around = [
        expert_case(op, "torch", QWEN3, tokens * 8, min(128, tokens * 8), energy=tokens in (16, 4096))
        for tokens in (16, 4096, 1, 64, 512)
        for op in ("dispatch_combine", "router_topk")
    ]
    others = [
        expert_case("expert_mlp", "grouped_mm", sizes, rows, experts)
        for sizes, loads in _OTHERS_ENERGY
        for rows, experts in loads
    ]
    latency = [
        expert_case("expert_mlp", "grouped_mm", sizes, rows, experts, energy=False)
        for sizes, loads in _LATENCY_ONLY
        for rows, experts in loads
    ]
    return [*main[:8], *around[:4], *calibration, *main[8:], *others, *latency, *around[4:], *_smaller_operations()]


def cpu_plan() -> list[Case]:
    """A few small cases in float32 for any machine."""
    sizes = (256, 128, 16, 4)
    loads = ((4, 1), (4, 4), (64, 4), (64, 16), (512, 16))
    experts = [
        expert_case("expert_mlp", impl, sizes, rows, touched, dtype="float32", energy=False)
        for impl in ("loop", "batched_mm")
        for rows, touched in loads
    ]
    around = [
        expert_case(op, "torch", sizes, rows, min(rows, 16), dtype="float32", energy=False)
        for op in ("dispatch_combine", "router_topk")
        for rows in (4, 64, 512)
    ]
    return [*experts, *around]


def expert_case(
    op: str, impl: str, sizes: Sizes, rows: int, experts: int, *, dtype: str = "bfloat16", energy: bool = True
) -> Case:
    """A case from a shape (D, I, E, k) and a load."""
    hidden_size, inter_size, num_experts, top_k = sizes
    return Case(
        op=op,
        impl=impl,
        hidden_size=hidden_size,
        inter_size=inter_size,
        num_experts=num_experts,
        top_k=top_k,
        routed_rows=rows,
        distinct_experts=experts,
        dtype=dtype,
        energy=energy,
    )


def _smaller_operations() -> list[Case]:
    batched = [
        expert_case("expert_mlp", "batched_mm", QWEN3, rows, experts, energy=energy)
        for rows, experts, energy in ((8, 8, True), (128, 82, True), (32, 32, False))
    ]
    around = [
        expert_case(
            "dispatch_combine", "torch", sizes, tokens * sizes[3], min(sizes[2], tokens * sizes[3]), energy=False
        )
        for sizes in (SMALL, MIXTRAL, DEEPSEEK_SHARD)
        for tokens in (16, 4096)
    ]
    return [*batched, *around]
