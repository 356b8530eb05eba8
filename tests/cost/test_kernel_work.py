"""What kernels make of a call: against the kernel's own source, its geometry, and plans made in plain Python."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_loads import SIZES, drawn, number, planned, told
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from thermoe.cost.cases import Cases
from thermoe.cost.kernel_work import (
    BYTES_OF_COST,
    FEW_SEGMENTS,
    JOB_COLUMNS,
    JOB_COST,
    JOB_ROWS,
    NUM_FIGURES,
    PAIR_ROWS,
    TILE_COST,
    TILE_ROWS,
    UNPACKING_BYTES,
    figures_of,
    group_sizes,
    rows_at_a_time,
    work_done,
    work_moved,
)
from thermoe.cost.kernels import LARGE, SMALL
from thermoe.cost.loads import Loads
from thermoe.cost.work import cases_of, work_of_cases
from thermoe.experts import quantize, quantize_fp8
from thermoe.kernels.expert_mlp import dequantize
from thermoe.profiling.case import Case
from thermoe.profiling.models import MODELS
from thermoe.profiling.operations import OPERATIONS
from thermoe.types import MoEShape

DISTINCT, WEIGHT_BYTES, ROW_BYTES, FLOPS = 0, 1, 2, 4
BITS = {"bfloat16": 16, "fp8": 8, "int8": 8, "int4": 4, "int2": 2, "bank8": 8, "bank4": 4, "bank2": 2}
CODES = [dtype for dtype in BITS if dtype.startswith(("int", "bank"))]


def shape_of(sizes: tuple[int, int, int, int]) -> MoEShape:
    return MoEShape(num_layers=1, hidden_size=sizes[0], inter_size=sizes[1], num_experts=sizes[2], top_k=sizes[3])


def asked(sizes, rows, distinct, *, op="expert_mlp", impl="thermoe", dtype="bfloat16", skew=1.0) -> Cases:
    return cases_of(op, shape_of(sizes), rows, distinct, impl=impl, dtype=dtype, skew=skew)


def table(cases: Cases) -> np.ndarray:
    return work_of_cases(cases).table()


def with_loads(cases: Cases, loads: Loads) -> Cases:
    return Cases(**{f: getattr(cases, f) for f in cases.__slots__} | {"loads": loads})


def profiled(sizes, dtype: str, op: str = "expert_mlp") -> Case:
    return Case(
        op=op,
        impl="thermoe",
        hidden_size=sizes[0],
        inter_size=sizes[1],
        num_experts=sizes[2],
        top_k=sizes[3],
        routed_rows=8,
        distinct_experts=1,
        dtype=dtype,
    )


def test_figures_of_the_plan_are_those_of_the_source():
    assert number("planes.cuh", r"TILE_TOKENS = (\d+)") == TILE_ROWS[0]
    assert number("bytes.cuh", r"TILE_TOKENS = (\d+)") == TILE_ROWS[1]
    assert number("planes.cuh", r"TILE_COST = (\d+)") == TILE_COST[0]
    assert number("bytes.cuh", r"TILE_COST = (\d+)") == TILE_COST[1]
    cost = r"e\.cost = Format::slot_bytes\(e\.planes\) / {} \+ {} \+ Format::TILE_COST \* \(tiles - 1\)"
    assert number("plan.cuh", cost.format(r"(\d+)", r"\d+")) == BYTES_OF_COST
    assert number("plan.cuh", cost.format(r"\d+", r"(\d+)")) == JOB_COST
    assert 132 // number("plan.cuh", r"FEW_SEGMENTS = (\d+);") == FEW_SEGMENTS
    assert number("planes.cuh", r"JOB_COLUMNS = (\d+),") == JOB_COLUMNS[0]
    assert number("bytes.cuh", r"struct Fp8 : ByteRows \{\n.*JOB_COLUMNS = (\d+),") == JOB_COLUMNS[0]
    assert number("bytes.cuh", r"struct Bf16 : ByteRows \{\n.*JOB_COLUMNS = (\d+),") == JOB_COLUMNS[1]


def slot_bytes(dtype: str) -> float:
    """As the source has it."""
    if dtype in ("bfloat16", "fp8"):
        return number("bytes.cuh", r"slot_bytes\(int\) \{ return (\d+); \}")
    planes = {2: 1, 4: 2, 8: 3}[BITS[dtype]]
    return number("planes.cuh", r"slot_bytes\(int planes\) \{ return (\d+)u << planes; \}") * 2**planes


@pytest.mark.parametrize("dtype", BITS)
def test_a_job_is_what_the_source_copies_at_a_time(dtype):
    columns = JOB_COLUMNS[1] if dtype == "bfloat16" else JOB_COLUMNS[0]
    assert JOB_ROWS * columns * BITS[dtype] / 8 == slot_bytes(dtype)


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_share_a_reading_and_parts_are_those_of_the_geometry(name):
    geometry = pytest.importorskip("thermoe.kernels.expert_mlp.cuda.geometry")
    D, I, *_ = sizes = MODELS[name]  # noqa: E741
    for dtype in BITS:
        cases = asked(sizes, 8.0, 1.0, dtype=dtype)
        columns = 128 if dtype == "bfloat16" else 256
        group = profiled(sizes, dtype).group_size
        whole = math.ceil(I / columns)
        splits = math.ceil(whole * columns / geometry.SPLIT_COLUMNS)
        jobs = max(math.ceil(D / columns), math.ceil(whole / splits))
        sums = columns // group if group else 0
        assert rows_at_a_time(cases).tolist() == [geometry._row_cap(jobs, columns, sums, 8)]
        assert 2 ** figures_of(cases)[0, NUM_FIGURES - 1] == splits


@pytest.mark.parametrize("load", ["random", "zipf", "balanced"])
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "int8", "int4", "int2"])
def test_work_is_that_of_a_plan_made_for_drawn_loads(dtype, load):
    """Mean over draws within 5 %, and 12 % for each; for loads by Zipf's law that the tokens cut off 16 %."""
    width, tile, further = (
        (2048, 4, 24) if dtype.startswith("int") else (7168, 8, 8)
    )  # rows share a reading by 16 and 8
    job = slot_bytes(dtype) // 64 + 2
    errors = []
    for num_experts, top_k in SIZES:
        for tokens in (1, 4, 16, 40, 64):
            for share in (0.1, 0.5, 1.0):
                distinct = max(top_k, int(num_experts * share))
                if distinct > tokens * top_k or tokens * top_k > 512:
                    continue
                draws = drawn(num_experts, top_k, tokens, distinct, load, count=8)
                cases = asked((width, 1024, num_experts, top_k), np.full(8, tokens * top_k), distinct, dtype=dtype)
                cases = with_loads(cases, told(draws))
                done, cap = work_done(cases, table(cases)), int(rows_at_a_time(cases)[0])
                plans = np.array([planned(d, cap, tile, job, further) for d in draws])
                rows = done[:, FLOPS] / table(cases)[:, FLOPS] * tokens * top_k
                told_and_planned = ((done[:, DISTINCT], plans[:, 0]), (rows / 4, plans[:, 1]))
                errors.append([got.mean() / want.mean() - 1 for got, want in told_and_planned])
    assert len(errors) > 30
    assert np.abs(errors).max() < (0.20 if load == "zipf" else 0.12)
    assert np.abs(errors).mean() < 0.02


def test_what_a_plan_costs_by_hand():
    """40 rows of one expert of Qwen3-30B in int4: segments of 16, 16 and 8, each counted as four tiles."""
    cases = asked((2048, 768, 128, 8), 40.0, 1.0, dtype="int4")
    done = work_done(cases, table(cases))
    assert done[0, DISTINCT] == 3.0
    assert done[0, FLOPS] / table(cases)[0, FLOPS] * 40 / 4 == pytest.approx(3 * (66 + 3 * 24) / 66)


@pytest.mark.parametrize(("kernel", "rows_an_expert"), [(SMALL, 100), (SMALL, 5), (LARGE, 300), (LARGE, 2000)])
def test_pairs_of_tiles_are_counted_as_drawn(kernel, rows_an_expert):
    draws = drawn(64, 1, 64 * rows_an_expert, 64, "random")
    cases = asked((2048, 1408, 64, 1), np.full(len(draws), 64.0 * rows_an_expert), 64.0, impl="grouped_mm")
    cases = with_loads(cases, told(draws))
    pair = {SMALL: 128, LARGE: 256}[kernel]
    pairs = np.mean([sum(math.ceil(rows / pair) for rows in d.tolist()) for d in draws])
    done = work_done(cases, table(cases))
    assert done[:, DISTINCT].mean() == pytest.approx(pairs, rel=0.03)
    padded = done[:, FLOPS] / table(cases)[:, FLOPS] * 64 * rows_an_expert
    assert padded.mean() == pytest.approx(pair * pairs, rel=0.03)
    assert PAIR_ROWS[kernel] == pair


@pytest.mark.parametrize(("impl", "dtype"), [("thermoe", "bfloat16"), ("thermoe", "int4"), ("grouped_mm", "bfloat16")])
def test_work_never_falls_when_rows_grow(impl, dtype):
    """Not at all for even loads; for uneven ones, told by the same skew, by less than 2 %."""
    for name, sizes in MODELS.items():
        most = min(512, 64 * sizes[3]) if impl == "thermoe" else 128 * sizes[2]
        for share, skew in ((0.1, 1.0), (0.5, 1.0), (1.0, 1.0), (0.2, 1.6), (1.0, 3.0)):
            distinct = max(1, round(share * sizes[2]))
            if distinct >= most:
                continue
            rows = np.unique(np.geomspace(distinct, most, 200).round())
            cases = asked(sizes, rows, float(distinct), impl=impl, dtype=dtype, skew=skew)
            done = work_done(cases, table(cases))[:, [DISTINCT, FLOPS]]
            assert (done[1:] >= (1.0 - 1e-9 if skew == 1.0 else 0.98) * done[:-1]).all(), name


@pytest.mark.parametrize(
    ("op", "impl", "dtype"),
    [
        ("expert_mlp", "loop", "bfloat16"),
        ("expert_mlp", "vllm_fused_moe", "int8"),
        ("gemm", "torch", "int8"),
        ("linear_fc1", "thermoe", "bfloat16"),
        ("activation", "grouped_mm", "bfloat16"),
        ("combine", "thermoe", "bfloat16"),
    ],
)
def test_other_implementations_and_operations_are_left_alone(op, impl, dtype):
    cases = asked((2880, 2880, 32, 4), np.array([4.0, 640.0, 65536.0]), np.array([4.0, 32.0, 32.0]), op=op, impl=impl)
    cases = Cases(**{f: getattr(cases, f) for f in cases.__slots__} | {"dtype": [dtype] * 3})
    assert (work_done(cases, table(cases)) == table(cases)).all()
    assert not figures_of(cases).any()


def test_what_was_asked_is_not_changed_in_place():
    cases = asked((2048, 768, 128, 8), 40.0, 1.0, dtype="int4")
    before = table(cases)
    kept = before.copy()
    work_done(cases, before)
    assert (before == kept).all()


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize(("sizes", "group"), [((2048, 768, 128, 8), 128), ((2880, 2880, 32, 4), 32)])
def test_bytes_of_scales_are_those_that_the_profiler_counts(dtype, sizes, group):
    cases, case = asked(sizes, 8.0, 1.0, dtype=dtype), profiled(sizes, dtype)
    assert group_sizes(cases).tolist() == [group] == [case.group_size]
    done = work_done(cases, table(cases))
    codes = 3 * sizes[0] * sizes[1] * BITS[dtype] / 8
    assert done[0, WEIGHT_BYTES] == pytest.approx(codes * (1 + 16 / (group * BITS[dtype])))
    assert done[0, WEIGHT_BYTES] == pytest.approx(case.expert_bytes, rel=0.01)  # whose last group may be no whole one
    assert figures_of(cases)[0, 5] == np.log2(128 / group)


def test_unpacking_reads_scales_whatever_runs_it():
    cases = asked((2048, 768, 128, 8), 8.0, 1.0, op="dequant_unpack_op", impl="torch", dtype="int4")
    assert work_done(cases, table(cases))[0, WEIGHT_BYTES] == pytest.approx(table(cases)[0, WEIGHT_BYTES] * 1.03125)


class BytesMoved(TorchDispatchMode):
    """Counts what operations read and write, views left aside; what is read again for a broadcast counts once."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            read = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
            self.count += sum(min(a.numel() * a.element_size(), a.untyped_storage().nbytes()) for a in read)
            self.count += sum(
                m.numel() * m.element_size() for m in tree_flatten(made)[0] if isinstance(m, torch.Tensor)
            )
        return made


@pytest.mark.parametrize("dtype", list(UNPACKING_BYTES))
def test_unpacking_moves_what_its_operations_read_and_write(dtype):
    weight = torch.randn(2, 256, 2048)
    if dtype == "fp8":
        matrices, bits_E = quantize_fp8(weight), None
    else:
        held = (2, 4, 8) if dtype.startswith("bank") else BITS[dtype]
        matrices = quantize(weight, held, group_size=128).matrices()
        bits_E = torch.full((2,), BITS[dtype]) if dtype.startswith("bank") else None
    with BytesMoved() as moved:
        dequantize(matrices, bits_E, dtype=torch.bfloat16)
    assert moved.count / weight.numel() == pytest.approx(UNPACKING_BYTES[dtype], rel=0.02)
    cases = asked((2048, 768, 64, 6), 48.0, 8.0, op="dequant_unpack_op", impl="torch", dtype=dtype)
    numbers = 8 * 3 * 2048 * 768
    further = work_moved(cases, table(cases))[0, ROW_BYTES] - table(cases)[0, ROW_BYTES]
    assert further == pytest.approx(numbers * UNPACKING_BYTES[dtype])


def test_a_plan_moves_no_activations():
    cases = asked((4096, 14336, 8, 2), np.array([2.0, 2048.0]), 2.0, op="dispatch")
    of_profiler = profiled((4096, 14336, 8, 2), "bfloat16", "dispatch")
    counted = [OPERATIONS["dispatch"].bytes_moved(replace(of_profiler, routed_rows=rows)) for rows in (2, 2048)]
    assert work_moved(cases, table(cases))[:, ROW_BYTES] == pytest.approx(counted)
    in_torch = asked((4096, 14336, 8, 2), 2048.0, 8.0, op="dispatch", impl="torch")
    assert work_moved(in_torch, table(in_torch))[0, ROW_BYTES] == 2048 * 4096 * 4
