"""Which cases a sweep measures in the time it has, in rounds that each cover everything. No torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from thermoe.cost.rows import CostRow
from thermoe.profiling.candidates import PACKED, adapter_case, expert_case, gpu_candidates, row_case, worth_energy
from thermoe.profiling.case import Case
from thermoe.profiling.design import Uncertainty, order
from thermoe.profiling.models import MODELS, Sizes
from thermoe.profiling.paired import paired_formats, paired_groups

ROUNDS = 4  # a sweep that is cut short has done whole rounds, each of them spread over everything
ENERGY_ROUNDS = 2  # the first ones hold all energies, so that what a slow machine leaves out is latencies
_SPARE = 1.5  # latencies planned over those that the pace has time for, should a machine be fast
SMALL: Sizes = (256, 128, 16, 4)
CPU_SHAPES: tuple[Sizes, ...] = ((512, 256, 8, 2), (384, 192, 32, 4))
_STREAMS = ("copy", "elementwise", "norm", "activation", "dispatch", "combine", "dispatch_combine")
_SHARES = {
    "expert_mlp": 10.0,
    "gemm": 4.0,
    "linear_fc1": 0.8,
    "linear_fc2": 0.8,
    "attention_decode": 0.8,
    "router_topk": 0.7,
    **dict.fromkeys(_STREAMS, 0.8),
}
_SMALL_SHARE = 0.4  # of every other operation
_ENERGY_SHARES = {
    "expert_mlp": 13.0,
    "gemm": 6.0,
    "linear_fc1": 1.0,
    "linear_fc2": 1.0,
    "attention_decode": 1.0,
    **dict.fromkeys(_STREAMS, 1.0),
}
_SMALL_ENERGY_SHARE = 0.4
_PAIRED_SHARE = 0.15  # of energies and of latencies, for calls beside their parts
_COPIES, _PRODUCT = ((1 << 19, 2048), (1, 1024)), (8192, 8192)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What cases take [s]: with the latency alone, and with energy windows."""

    latency_s: float = 0.1
    energy_s: float = 4.9


def gpu_plan(
    minutes: float,
    *,
    energy_share: float = 0.65,
    known: Sequence[CostRow] = (),
    uncertainty: Uncertainty | None = None,
    ops: Sequence[str] = (),
    compiled: bool = False,
    pace: Pace | None = None,
) -> list[Case]:
    """Cases for about so many minutes on a data-centre GPU.

    Args:
        minutes: Time there is [min].
        energy_share: Share of it that goes into energy windows; 0 for none, 1 for nothing else.
        known: Rows that need not be measured again.
        uncertainty: See `thermoe.profiling.design`.
        ops: Only these operations beside the calibration, which tells how the board stands to others; all if empty.
        compiled: See `thermoe.profiling.candidates`.
        pace: What cases take.
    """
    pace = pace or Pace()
    calibration = _calibration() if energy_share > 0 else []
    num_energy = int(60.0 * minutes * energy_share / pace.energy_s)
    num_latency = int(_SPARE * 60.0 * minutes * (1.0 - energy_share) / pace.latency_s)
    measured = [row for row in known if row.energy_mj is not None]
    pairs = _paired(num_energy, num_latency, known, ops)
    first = {c.key for c in (*calibration, *pairs)}
    candidates = [c for c in gpu_candidates(compiled=compiled) if (not ops or c.op in ops) and c.key not in first]
    num_energy -= sum(c.energy for c in pairs)
    worth = [c for c in candidates if worth_energy(c)]
    with_energy = _spread(worth, _ENERGY_SHARES, _SMALL_ENERGY_SHARE, num_energy, measured, uncertainty)
    chosen = {c.key for c in with_energy}
    have = {row.case_key for row in known}
    others = [c for c in candidates if c.key not in chosen and c.key not in have]
    num_latency -= sum(not c.energy for c in pairs)
    alone = _spread(others, _SHARES, _SMALL_SHARE, num_latency, known, uncertainty)
    return [*calibration, *pairs, *_in_rounds([replace(c, energy=True) for c in with_energy], alone)]


def cpu_plan() -> list[Case]:
    """Every operation in float32 at three small shapes, for any machine: shapes can be left out of a fit.

    In rounds of all operations, shape after shape, so that a sweep cut short has seen several shapes of each.
    """
    one, other = CPU_SHAPES
    rounds = ((SMALL, 16), (one, 64), (other, 8), (SMALL, 128), (one, 8), (other, 64))
    first, *others = (_small_cases("float32", sizes, tokens) for sizes, tokens in rounds)
    # Products with the weights of every row gathered take seconds with many rows: the first round shows what they cost.
    return list(dict.fromkeys([*first, *(case for cases in others for case in cases if case.impl != "batched_mm")]))


def smoke_plan(device_type: str) -> list[Case]:
    """Every operation, implementation and format once, small; on a GPU also what its kernels tell apart."""
    if device_type == "cpu":
        return list(_small_cases("float32"))
    sizes = MODELS["granite-3.0-1b-a400m"]
    fused = [expert_case("expert_mlp", "thermoe", sizes, 128, 24, dtype=d) for d in ("bfloat16", *PACKED)]
    odd = [
        expert_case("expert_mlp", "thermoe", MODELS[name], 16 * MODELS[name][3], 20, dtype="int4")
        for name in ("deepseek-v2-lite", "gpt-oss-20b")
    ]
    many = [
        expert_case("expert_mlp", "thermoe", sizes, 2048, 32),
        expert_case("expert_mlp", "thermoe", sizes, 2048, 32, load="zipf"),
        expert_case("expert_mlp", "grouped_mm", sizes, 128, 24),
        expert_case("expert_mlp", "batched_mm", sizes, 128, 24),
    ]
    codes = [expert_case("dequant_unpack_op", "torch", sizes, 8, 8, dtype=d) for d in PACKED]
    energies = [replace(many[0], routed_rows=4096, energy=True), replace(fused[0], routed_rows=64, energy=True)]
    return [*fused, *odd, *many, *codes, *_small_cases("bfloat16", sizes), *energies]


def _small_cases(dtype: str, sizes: Sizes = SMALL, tokens: int = 16) -> Iterator[Case]:
    hidden_size, _, num_experts, top_k = sizes
    rows, experts = tokens * top_k, min(num_experts, tokens * top_k)
    gate = (hidden_size, 1, num_experts, 1)
    linears: tuple[str, ...] = ("grouped_mm",) if dtype == "bfloat16" else ("loop", "batched_mm", "thermoe")
    for impl in linears:
        for touched in sorted({top_k, experts}):
            yield expert_case("expert_mlp", impl, sizes, rows, touched, dtype=dtype)
    for op in ("linear_fc1", "linear_fc2"):
        yield expert_case(op, linears[0], sizes, rows, experts, dtype=dtype)
    yield expert_case("activation", "torch", sizes, rows, experts, dtype=dtype)
    if dtype != "bfloat16":
        for packed in ("int8", "int4", "int2", "bank4"):
            yield expert_case("expert_mlp", "thermoe", sizes, rows, top_k, dtype=packed)
            yield expert_case("dequant_unpack_op", "torch", sizes, rows, top_k, dtype=packed)
    for op, impls in (
        ("router_topk", ("torch", "thermoe", "thermoe_union")),
        ("dispatch", ("thermoe", "torch")),
        ("combine", ("thermoe", "torch")),
        ("dispatch_combine", ("torch",)),
    ):
        for impl in impls:
            yield expert_case(op, impl, sizes, rows, experts, dtype=dtype)
    yield expert_case("router_gate", "torch", gate, tokens, min(tokens, num_experts), dtype=dtype)
    yield expert_case("ttt_step", "torch", gate, tokens, min(tokens, num_experts), dtype=dtype)
    yield row_case("gemm", "torch", tokens, hidden_size, 2 * hidden_size, dtype=dtype)
    if dtype == "bfloat16":
        yield row_case("gemm", "torch", tokens, hidden_size, 2 * hidden_size, dtype="fp8")
    for op in ("copy", "elementwise", "norm"):
        yield row_case(op, "torch", 64 * tokens, hidden_size, dtype=dtype)
    yield row_case("attention_decode", "torch", tokens, 512, 256, context=256, dtype=dtype)
    for op in ("ttha_adapter_forward", "ttha_update"):
        yield adapter_case(op, tokens, num_experts)


def _calibration() -> list[Case]:
    """What the board gives and takes today, beside every result: a long and a short copy, and a matrix product."""
    long, short = (row_case("copy", "torch", rows, columns, energy=True) for rows, columns in _COPIES)
    return [long, row_case("gemm", "torch", _PRODUCT[0], _PRODUCT[1], _PRODUCT[1], energy=True), short]


def _paired(num_energy: int, num_latency: int, known: Sequence[CostRow], ops: Sequence[str]) -> list[Case]:
    """Calls and their parts at the same loads: whole groups with energy, as many as a share allows, the others without.

    They stand first, because half a group is of no use.
    """
    have = {row.case_key for row in known}
    have_energy = {row.case_key for row in known if row.energy_mj is not None}
    most = {True: int(_PAIRED_SHARE * num_energy), False: int(_PAIRED_SHARE * num_latency)}
    chosen: list[Case] = []
    for group in [*paired_groups(), *([case] for case in paired_formats())]:
        wanted = [c for c in group if not ops or c.op in ops]
        new = [c for c in wanted if c.key not in have_energy]
        energy = len(group) > 1 and 0 < len(new) <= most[True]
        new = new if energy else [c for c in wanted if c.key not in have]
        if len(new) <= most[energy]:
            most[energy] -= len(new)
            chosen += [replace(c, energy=energy) for c in new]
    return chosen


def _spread(
    candidates: Sequence[Case],
    shares: dict[str, float],
    small_share: float,
    count: int,
    known: Iterable[CostRow],
    uncertainty: Uncertainty | None,
) -> list[Case]:
    """So many cases, divided among the operations by their shares, each operation's in the order of the design."""
    by_op: dict[str, list[Case]] = {}
    for case in candidates:
        by_op.setdefault(case.op, []).append(case)
    weights = {op: shares.get(op, small_share) for op in by_op}
    numbers = _divided(count, weights, {op: len(cases) for op, cases in by_op.items()})
    known = list(known)
    ordered = {op: order(by_op[op], known, uncertainty, numbers[op]) for op in by_op if numbers[op]}
    ranked = [((place + 0.5) / weights[op], case) for op, cases in ordered.items() for place, case in enumerate(cases)]
    return [case for _, case in sorted(ranked, key=lambda pair: pair[0])]


def _divided(count: int, weights: dict[str, float], available: dict[str, int]) -> dict[str, int]:
    """`count` by weights, no more than there are; what some cannot use goes to the others."""
    numbers = dict.fromkeys(weights, 0)
    left = min(count, sum(available.values()))
    while left > 0:
        open_ops = [op for op in weights if numbers[op] < available[op]]
        total = sum(weights[op] for op in open_ops)
        for op in sorted(open_ops, key=lambda op: -weights[op]):
            given = min(max(1, int(left * weights[op] / total)), available[op] - numbers[op], left)
            numbers[op] += given
            left -= given
            total -= weights[op]
            if left == 0:
                break
    return numbers


def _in_rounds(with_energy: Sequence[Case], alone: Sequence[Case]) -> list[Case]:
    """Rounds of equal parts, energies in the first of them; cases that read the same weights follow one another.

    Every second round goes backwards, so that it begins with the weights that the one before left in memory.
    """
    cases = []
    for number in range(ROUNDS):
        part = [*alone[number::ROUNDS]]
        if number < ENERGY_ROUNDS:
            part += with_energy[number::ENERGY_ROUNDS]
        part.sort(key=lambda c: (c.sizes, "bank" if c.dtype.startswith("bank") else c.dtype, c.op))
        cases += part if number % 2 == 0 else part[::-1]
    return cases
