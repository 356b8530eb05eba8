"""Which operation a kernel belongs to: the name of the range around its launch first, its own name second."""

import re
from collections.abc import Iterable

#: Range names that are operations; any range named `op:NAME` or `thermoe::NAME` (a slash ends the name) is one too.
OPERATIONS = (
    *("router_gate", "router_topk", "routing", "routing_topk", "dispatch", "combine", "dispatch_combine"),
    *("linear_fc1", "activation", "linear_fc2", "dequant_unpack_op", "expert_mlp", "moe_layer", "attention"),
    *("ttha_adapter_forward", "ttha_update", "ttt_step"),
)
PREFIXES = ("op:", "thermoe:")
OTHER = "other"

#: Kernel names by what they do, first match wins: special kernels before the general ones that their names contain.
KERNEL_TYPES = (
    ("collective", r"nccl|nvshmem|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all"),
    ("attention", r"flash|fmha|attention|attn|mha_"),
    ("dequantize", r"dequant|unpack"),
    ("quantize", r"quant|scaled_fp8|to_fp8"),
    ("expert_mlp", r"fused_moe|moe_gemm|grouped_?(gemm|mm)|group_?gemm|expert_mlp|moe_mlp"),
    ("routing", r"topk|top_k|gating|moe_align|route"),
    ("softmax", r"softmax"),
    ("norm", r"layer_?norm|rms_?norm|batch_?norm|group_?norm|bn_fw|bn_bw"),
    ("activation", r"silu|gelu|relu|swiglu|sigmoid|tanh|act_and_mul"),
    ("sort", r"sort|radix|scan|prefix"),
    ("gather_scatter", r"gather|scatter|index|embedding"),
    ("gemm", r"gemm|gemv|nvjet|matmul|cublas|cutlass|xmma|wgmma|split_?k|_mm_|dot_kernel|conv"),
    ("random", r"random|philox|curand|dropout|distribution"),
    ("reduce", r"reduce|_sum|argmax"),
    ("copy", r"copy|memcpy|memset|fill|catarray|transpose|permute|cast"),
    ("elementwise", r"elementwise|vectorized|pointwise|add|mul|unrolled|kernel_?cuda_?loops"),
)
_COMPILED = [(name, re.compile(pattern, re.IGNORECASE)) for name, pattern in KERNEL_TYPES]


def operation_of_range(name: str | None) -> str | None:
    """The operation that a range of this name stands for; `None` for every other range."""
    if not name:
        return None
    lowered = name.strip().lower()
    for prefix in PREFIXES:
        if lowered.startswith(prefix):
            return lowered.removeprefix(prefix).lstrip(":").split("/")[0].strip() or None
    return lowered if lowered in OPERATIONS else None


def type_of_kernel(names: Iterable[str | None]) -> str:
    """What a kernel does by its names, the shortest first; "other" where no pattern knows them."""
    known = [name for name in names if name]
    for text in known:
        for kind, pattern in _COMPILED:
            if pattern.search(text):
                return kind
    return OTHER
