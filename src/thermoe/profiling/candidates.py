"""Every case that a sweep on a GPU may choose from. No torch."""

from collections.abc import Iterable, Iterator

from thermoe.cost.work import expected_distinct_experts
from thermoe.profiling.case import Case
from thermoe.profiling.models import EXPERT_LINEARS, HEADS, LINEARS, MODELS, Sizes

MAX_SLOTS_FEW = 512  # what the decode kernel takes; beyond, packed formats are compiled by Triton for every shape
MAX_TOKENS_FEW = 64
FEW_TOKENS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
MANY_TOKENS = (96, 128, 192, 256, 512, 1024, 2048, 4096, 8192)
PACKED = ("fp8", "int8", "int4", "int2", "bank8", "bank4", "bank2")
_SHARES = (0.35, 0.5, 0.65, 0.8, 1.0)  # of what random routing touches: what a router may aim at
_MAIN = ("qwen3-30b-a3b", "mixtral-8x7b", "olmoe-1b-7b", "deepseek-v2-lite")
_STREAM_WIDTHS = (1024, 1536, 2048, 2880, 4096, 5120, 6144, 7168)
_STREAM_ROWS = (1, 4, 16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_ENERGY_TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
_EXPERT_OPS = ("expert_mlp", "linear_fc1", "linear_fc2")
_MAX_ROW_VALUES = 1 << 28  # of routed rows x width, so that activations stay below a gigabyte


def gpu_candidates(*, compiled: bool = False) -> list[Case]:
    """Cases of every operation; `compiled` adds those for which Triton compiles a kernel for each shape (seconds)."""
    cases = [*_experts(compiled=compiled), *_parts(), *_around(), *_dense(), *_attention(), *_adaptation()]
    return list(dict.fromkeys(cases))


def worth_energy(case: Case) -> bool:
    """Whether seconds of measuring energy are well spent: loads as random routing makes them, few numbers of tokens."""
    if case.load != "random":
        return False
    if case.op not in _EXPERT_OPS:
        return True
    at_random = float(expected_distinct_experts(case.num_experts, case.top_k, case.tokens))
    return case.tokens in _ENERGY_TOKENS and abs(case.distinct_experts - at_random) < 1.0


def touched_experts(sizes: Sizes, tokens: int) -> list[int]:
    """Numbers of distinct experts worth measuring: as random routing touches, fewer, and as many as can be.

    That many tokens all want the same few experts happens nowhere, so what that would cost is left to the law.
    """
    _, _, num_experts, top_k = sizes
    most = min(num_experts, tokens * top_k)
    at_random = float(expected_distinct_experts(num_experts, top_k, tokens))
    wished = [*(share * at_random for share in _SHARES), 0.5 * (at_random + most), float(most)]
    return sorted({round(w) for w in wished if top_k <= round(w) <= most})


def expert_case(
    op: str,
    impl: str,
    sizes: Sizes,
    rows: int,
    experts: int,
    *,
    dtype: str = "bfloat16",
    load: str = "random",
    context: int = 1,
    energy: bool = False,
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
        load=load,
        context=context,
        energy=energy,
    )


def row_case(op: str, impl: str, rows: int, columns: int, inter_size: int = 1, **more: object) -> Case:
    """A case without experts."""
    return expert_case(op, impl, (columns, inter_size, 1, 1), rows, 1, **more)  # type: ignore[arg-type]


def _experts(*, compiled: bool) -> Iterator[Case]:
    for name, sizes in MODELS.items():
        for tokens in _tokens(sizes):
            rows = tokens * sizes[3]
            few = tokens <= MAX_TOKENS_FEW and rows <= MAX_SLOTS_FEW
            formats = ("bfloat16", *PACKED) if few or (compiled and name in _MAIN) else ("bfloat16",)
            for dtype in formats:
                if dtype in PACKED and not _fits_planes(sizes, dtype):
                    continue
                for experts in touched_experts(sizes, tokens):
                    yield expert_case("expert_mlp", "thermoe", sizes, rows, experts, dtype=dtype)
                    if dtype in ("bfloat16", "int4") and tokens >= 16 and experts > sizes[3]:
                        yield expert_case("expert_mlp", "thermoe", sizes, rows, experts, dtype=dtype, load="zipf")


def _parts() -> Iterator[Case]:
    for sizes in MODELS.values():
        for tokens in _ENERGY_TOKENS:
            rows = tokens * sizes[3]
            if rows * max(sizes[:2]) > _MAX_ROW_VALUES:
                continue
            for experts in touched_experts(sizes, tokens):
                yield expert_case("expert_mlp", "grouped_mm", sizes, rows, experts)
                yield expert_case("linear_fc1", "grouped_mm", sizes, rows, experts)
                yield expert_case("linear_fc2", "grouped_mm", sizes, rows, experts)
    for sizes in MODELS.values():
        for tokens in (1, 8, 64, 512, 4096):
            rows = tokens * sizes[3]
            if rows * sizes[1] <= _MAX_ROW_VALUES:
                yield expert_case("activation", "torch", sizes, rows, min(rows, sizes[2]))
    for name in (*_MAIN, "granite-3.0-1b-a400m"):
        sizes = MODELS[name]
        for dtype in PACKED:
            for experts in sorted({sizes[3], sizes[2] // 2}):
                yield expert_case("dequant_unpack_op", "torch", sizes, max(experts, sizes[3]), experts, dtype=dtype)


def _around() -> Iterator[Case]:
    for name, sizes in MODELS.items():
        hidden_size, _, num_experts, top_k = sizes
        for tokens in (1, 8, 16, 64, 256, 1024, 4096, 8192):
            rows = tokens * top_k
            experts = min(num_experts, rows)
            gate = (hidden_size, 1, num_experts, 1)
            yield expert_case("router_gate", "torch", gate, tokens, min(tokens, num_experts))
            if tokens in (64, 1024):
                yield expert_case("ttt_step", "torch", gate, tokens, min(tokens, num_experts))
            yield expert_case("router_topk", "torch", sizes, rows, experts)
            if rows * hidden_size > _MAX_ROW_VALUES:
                continue
            yield expert_case("dispatch_combine", "torch", sizes, rows, experts)
            yield expert_case("combine", "thermoe", sizes, rows, experts)
            yield expert_case("dispatch", "torch", sizes, rows, experts)
            if name in _MAIN:  # each of these is built for its number of experts
                yield expert_case("router_topk", "thermoe", sizes, rows, experts)
                yield expert_case("router_topk", "thermoe_union", sizes, rows, experts)
                yield expert_case("dispatch", "thermoe", sizes, rows, experts)
                yield expert_case("combine", "torch", sizes, rows, experts)


def _dense() -> Iterator[Case]:
    for n, k in dict.fromkeys((*LINEARS, *EXPERT_LINEARS)):
        for m in (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192):
            if m * n <= _MAX_ROW_VALUES:
                yield row_case("gemm", "torch", m, k, n)
                yield row_case("gemm", "torch", m, k, n, dtype="fp8")
    for columns in _STREAM_WIDTHS:
        for rows in _STREAM_ROWS:
            for op in ("copy", "elementwise", "norm"):
                if rows * columns <= _MAX_ROW_VALUES:
                    yield row_case(op, "torch", rows, columns)
    yield row_case("copy", "torch", 1 << 19, 2048)


def _attention() -> Iterator[Case]:
    for query_heads, key_heads in HEADS.values():
        for sequences in (1, 4, 16, 64):
            for context in (128, 512, 2048, 8192, 32768):
                if sequences * context * key_heads * 128 <= _MAX_ROW_VALUES:
                    yield row_case(
                        "attention_decode", "torch", sequences, 128 * query_heads, 128 * key_heads, context=context
                    )


def _adaptation() -> Iterator[Case]:
    for layers, experts in ((6, 64), (24, 32), (32, 8), (16, 64), (48, 128), (48, 512)):
        for op in ("ttha_adapter_forward", "ttha_update"):
            yield adapter_case(op, layers, experts)


def adapter_case(op: str, layers: int, experts: int) -> Case:
    """A case of the adapter: its 8 features and 8 hidden units."""
    return expert_case(op, "host", (8, 8, experts, 1), layers * experts, experts, dtype="float32")


def _tokens(sizes: Sizes) -> Iterable[int]:
    return (t for t in (*FEW_TOKENS, *MANY_TOKENS) if t * sizes[3] * max(sizes[:2]) <= _MAX_ROW_VALUES)


def _fits_planes(sizes: Sizes, dtype: str) -> bool:
    """Packed formats other than fp8 and int4 only where groups of 128 suit: each group size is a kernel of its own."""
    case = expert_case("expert_mlp", "thermoe", sizes, sizes[3], sizes[3], dtype=dtype)
    return dtype in ("fp8", "int4") or case.group_size == 128
