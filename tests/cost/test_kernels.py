"""Which kernel takes a call: the same rule as the kernels' own, and what is known of it before a call."""

import numpy as np
import pytest

from thermoe.cost.kernels import (
    FEW,
    GROUPED,
    LEAST_PLACES,
    MOST_SLOTS,
    MOST_TOKENS,
    ONLY,
    TILES,
    figures_of,
    group_sizes,
    kernels_of,
    rows_at_a_time,
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
    assert set(kernels_of(cases(rows, impl="grouped_mm"))) == {ONLY}
    assert set(kernels_of(cases(rows, op="linear_fc1"))) == {ONLY}
    assert kernels_of(cases(rows)).tolist() == [FEW, TILES, GROUPED]
    assert not figures_of(cases(rows, impl="grouped_mm")).any()


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
