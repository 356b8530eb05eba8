"""Expert MLP calls and their parts at the same sizes and loads, so that one can be set against the other. No torch.

A plan that spreads every operation over its own sizes hardly ever measures a call and its parts at one point
(`thermoe.cost.parts` says which rows belong together), so these are measured together.
"""

from thermoe.cost.work import expected_distinct_experts
from thermoe.profiling.candidates import MAX_SLOTS_FEW, MAX_TOKENS_FEW, expert_case
from thermoe.profiling.case import Case
from thermoe.profiling.models import MODELS, Sizes

_LOADS = (
    ("qwen3-30b-a3b", 16),
    ("olmoe-1b-7b", 16),
    ("qwen3-30b-a3b", 1024),
    ("mixtral-8x7b", 16),
    ("deepseek-v2-lite", 64),
    ("olmoe-1b-7b", 1024),
    ("granite-3.0-1b-a400m", 16),
    ("mixtral-8x7b", 1024),
)
_ENERGY_FORMATS = ("int4",)
_OTHER_FORMATS = ("fp8", "int8", "int2", "bank4")


def paired_groups() -> list[list[Case]]:
    """Groups to be measured whole, the most telling first: calls of one load, and all their parts."""
    return [_group(MODELS[name], tokens, _ENERGY_FORMATS) for name, tokens in _LOADS]


def paired_formats() -> list[Case]:
    """Calls in further formats and their dequantising; the other parts are those of `paired_groups`."""
    return [case for name, tokens in _LOADS for case in _packed(MODELS[name], tokens, _OTHER_FORMATS)]


def _group(sizes: Sizes, tokens: int, formats: tuple[str, ...]) -> list[Case]:
    rows, experts = tokens * sizes[3], _experts(sizes, tokens)
    alone = (
        ("expert_mlp", "thermoe"),
        ("expert_mlp", "grouped_mm"),
        ("linear_fc1", "grouped_mm"),
        ("activation", "torch"),
        ("linear_fc2", "grouped_mm"),
        ("dispatch", "torch"),
        ("combine", "thermoe"),
    )
    return [
        *(expert_case(op, impl, sizes, rows, experts) for op, impl in alone),
        *_packed(sizes, tokens, formats),
    ]


def _packed(sizes: Sizes, tokens: int, formats: tuple[str, ...]) -> list[Case]:
    rows, experts = tokens * sizes[3], _experts(sizes, tokens)
    if tokens > MAX_TOKENS_FEW or rows > MAX_SLOTS_FEW:
        return []  # a kernel would have to be compiled for each
    pairs = (("expert_mlp", "thermoe"), ("dequant_unpack_op", "torch"))
    return [expert_case(op, impl, sizes, rows, experts, dtype=dtype) for dtype in formats for op, impl in pairs]


def _experts(sizes: Sizes, tokens: int) -> int:
    """Experts that random routing touches."""
    return round(float(expected_distinct_experts(sizes[2], sizes[3], tokens)))
