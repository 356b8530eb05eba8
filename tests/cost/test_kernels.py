"""Which kernel takes a call: the same rule as the kernels' own, and what is known of it before a call."""

import numpy as np
import pytest

from thermoe.cost.kernel_work import figures_of, group_sizes, rows_at_a_time
from thermoe.cost.kernels import (
    BLOCK_NUMBERS,
    CUT,
    FEW,
    GROUPED,
    HUGE,
    HUGE_BYTES,
    LARGE,
    LEAST_PLACES,
    MOST_SLOTS,
    MOST_TOKENS,
    ONLY,
    SMALL,
    TILES,
    kernels_of,
)
from thermoe.cost.work import cases_of
from thermoe.profiling.case import Case
from thermoe.types import MoEShape

QWEN = MoEShape(num_layers=1, hidden_size=2048, inter_size=768, num_experts=128, top_k=8)


def cases(rows, distinct=8.0, *, shape=QWEN, op="expert_mlp", impl="thermoe", dtype="bfloat16"):
    return cases_of(op, shape, rows, distinct, impl=impl, dtype=dtype)


def test_the_rule_is_that_of_the_kernels():
    configs = pytest.importorskip("thermoe.kernels.expert_mlp.configs")
    assert (MOST_TOKENS, MOST_SLOTS) == (configs.FEW_TOKENS, configs.FEW_SLOTS)
    names = {"bfloat16": "bf16", "int4": "int4-g128"}
    assert {names[d]: n for d, n in LEAST_PLACES.items()} == configs.GROUPED_PLACES
    for dtype, rows in [("bfloat16", 512), ("bfloat16", 520), ("bfloat16", 4096), ("int4", 520), ("fp8", 8192)]:
        shape = configs.Shape(names.get(dtype, dtype), 2048, 768, 128, 8, rows // 8)
        config = configs.default(shape, 90)
        expected = FEW if shape.few else GROUPED if config.grouped else TILES
        assert kernels_of(cases(rows, dtype=dtype)).tolist() == [expected]


def test_other_implementations_and_operations_have_one_kernel():
    rows = np.array([8.0, 640.0, 65536.0])
    assert set(kernels_of(cases(rows, impl="loop"))) == {ONLY}
    assert set(kernels_of(cases(rows, op="linear_fc1"))) == {ONLY}
    assert set(kernels_of(cases(rows, op="activation", impl="grouped_mm"))) == {ONLY}
    assert kernels_of(cases(rows)).tolist() == [FEW, TILES, GROUPED]
    assert not figures_of(cases(rows, impl="loop")).any()


def test_torch_copies_half_a_gibibyte_another_way():
    wide = MoEShape(num_layers=1, hidden_size=4096, inter_size=1, num_experts=1, top_k=1)
    rows = np.array([32768.0, HUGE_BYTES / 2 / 4096 - 1, HUGE_BYTES / 2 / 4096, 524288.0])
    assert kernels_of(cases(rows, 1.0, shape=wide, op="copy", impl="torch")).tolist() == [ONLY, ONLY, HUGE, HUGE]
    in_32_bit = cases(rows[:2], 1.0, shape=wide, op="copy", impl="torch", dtype="float32")
    assert kernels_of(in_32_bit).tolist() == [HUGE, HUGE]
    assert set(kernels_of(cases(rows, 1.0, shape=wide, op="elementwise", impl="torch"))) == {ONLY}


def test_elementwise_operations_whose_last_block_is_cut():
    for width, rows, name in [(2880, 1, CUT), (2880, 4, CUT), (2880, 16, ONLY), (1536, 1, CUT), (1536, 2, ONLY)]:
        shape = MoEShape(num_layers=1, hidden_size=width, inter_size=1, num_experts=1, top_k=1)
        assert (width * rows % BLOCK_NUMBERS > 0) == (name == CUT)
        of_rows = kernels_of(cases(np.array([rows, rows + 1e-6]), 1.0, shape=shape, op="elementwise", impl="torch"))
        assert of_rows.tolist() == [name, name]


@pytest.mark.parametrize("op", ["expert_mlp", "linear_fc1", "linear_fc2"])
def test_tiles_of_the_grouped_product_go_by_rows_over_all_experts_rounded_down(op):
    """PyTorch divides rows by groups as whole numbers, and takes large tiles above 128."""
    rows = np.array([1, 127, 128, 129, 4000, *(128 * 128 + np.array([0, 8, 120, 127, 128, 136]))])
    expected = [SMALL if n // 128 <= 128 else LARGE for n in rows.tolist()]
    assert expected[-3:] == [SMALL, LARGE, LARGE]
    for distinct in (1.0, 128.0):
        assert kernels_of(cases(rows, distinct, op=op, impl="grouped_mm")).tolist() == expected
    one = MoEShape(num_layers=1, hidden_size=64, inter_size=64, num_experts=1, top_k=1)
    few = cases(np.array([128.0, 129.0]), 1.0, shape=one, op=op, impl="grouped_mm")
    assert kernels_of(few).tolist() == [SMALL, LARGE]


def test_groups_are_those_that_the_profiler_measures():
    for widths in ((2048, 768), (2880, 2880), (2048, 1408), (7168, 2048)):
        case = Case(
            op="expert_mlp",
            impl="thermoe",
            hidden_size=widths[0],
            inter_size=widths[1],
            num_experts=8,
            top_k=2,
            routed_rows=8,
            distinct_experts=4,
            dtype="int4",
        )
        shape = MoEShape(num_layers=1, hidden_size=widths[0], inter_size=widths[1], num_experts=8, top_k=2)
        assert group_sizes(cases(8.0, 4.0, shape=shape, dtype="int4")).tolist() == [case.group_size]


def test_wider_models_and_codes_share_a_reading_among_fewer_rows():
    wide = MoEShape(num_layers=1, hidden_size=7168, inter_size=2048, num_experts=32, top_k=8)
    bf16, int4, far = (
        rows_at_a_time(cases(512.0, shape=shape, dtype=dtype))[0]
        for shape, dtype in ((QWEN, "bfloat16"), (QWEN, "int4"), (wide, "bfloat16"))
    )
    assert bf16 > int4 >= 16 > far >= 1
    readings = np.exp(figures_of(cases(512.0, 8.0, shape=wide))[0, 0])
    assert readings == pytest.approx(np.ceil(64 / far))
