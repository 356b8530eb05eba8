"""What rows, sizes and figures are called."""

from thermoe.cost.rows import CostRow
from thermoe.profiling.models import MODELS

_MODEL_NAMES = {sizes: name for name, sizes in MODELS.items()}
_WITHOUT_EXPERTS = ("gemm", "matmul", "copy", "elementwise", "norm", "attention_decode", "router_gate", "ttt_step")


def shape_name(row: CostRow) -> str:
    """A model's name where its sizes are known, else the sizes that mean something for the operation."""
    sizes = (row.hidden_size, row.inter_size, row.num_experts, row.top_k)
    if sizes in _MODEL_NAMES:
        return _MODEL_NAMES[sizes]
    if row.op in ("gemm", "matmul"):
        return f"n {row.inter_size}, k {row.hidden_size}"
    if row.op == "attention_decode":
        return f"{row.hidden_size // 128} heads, {row.inter_size // 128} of keys"
    if row.op in ("copy", "elementwise", "norm"):
        return f"{row.hidden_size} columns"
    if row.op.startswith("ttha"):
        return f"{row.num_experts} experts"
    if row.op in ("router_gate", "ttt_step"):
        return f"D{row.hidden_size} E{row.num_experts}"
    return f"D{row.hidden_size} I{row.inter_size} E{row.num_experts} k{row.top_k}"


def tokens_name(op: str) -> str:
    """What the count of a row's tokens means for an operation."""
    if op in ("copy", "elementwise", "norm", "gemm", "matmul"):
        return "rows"
    if op.startswith("ttha"):
        return "rows (layers × experts)"
    return "sequences" if op == "attention_decode" else "tokens"


def has_experts(op: str) -> bool:
    """Whether the number of touched experts means something for an operation."""
    return op not in _WITHOUT_EXPERTS and not op.startswith("ttha")


def short(value: float, _: object = None) -> str:
    """A number as a tick or a label says it: 0.05, 12, 3000, 20k, 1.5M."""
    size = abs(value)
    for limit, factor, sign in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / factor:.3g}{sign}"
    return f"{value:.0f}" if size >= 1000.0 else f"{value:.3g}"
