import numpy as np
import pytest

from thermoe.cost.loads import BLOCKS, even_loads, many_named_loads, named_loads
from thermoe.cost.tiles import launch_tiles
from thermoe.errors import DataError


def test_balanced_loads_by_hand():
    loads = named_loads("balanced", 24, 8, 64, 4)  # 192 rows on 64 experts, 16 of them on a GPU
    assert (loads.rows[0], loads.distinct[0], loads.fullest[0]) == (48, 16, 3)
    assert loads.tiles[0].tolist() == [16.0] * len(BLOCKS)


@pytest.mark.parametrize("name", ["balanced", "random", "power_law_1.01", "power_law_1.2"])
@pytest.mark.parametrize(("tokens", "top_k", "experts", "ranks"), [(1, 8, 128, 1), (7, 2, 8, 2), (4096, 6, 256, 32)])
def test_loads_add_up_and_the_busiest_gpu_has_at_least_its_share(name, tokens, top_k, experts, ranks):
    loads = named_loads(name, tokens, top_k, experts, ranks)
    rows = tokens * top_k
    assert rows / ranks * (1 - 1e-9) <= loads.rows[0] <= rows
    assert 0 < loads.distinct[0] <= min(experts / ranks, loads.rows[0] + 1)
    assert (np.diff(loads.tiles[0]) <= 0).all()
    assert (loads.tiles[0] * np.array(BLOCKS) >= loads.rows[0] - 1e-9).all()


def test_random_routing_never_picks_an_expert_twice_and_touches_what_chance_says():
    assert named_loads("random", 1, 8, 128, 1).distinct[0] == 8
    assert named_loads("random", 16, 8, 128, 1).distinct[0] == pytest.approx(128 * (1 - (120 / 128) ** 16), rel=0.04)


def test_a_steeper_power_law_is_more_uneven():
    even, steep = (named_loads(n, 1024, 8, 128, 16) for n in ("balanced", "power_law_1.2"))
    assert steep.rows[0] > 1.5 * even.rows[0]
    assert steep.fullest[0] > 5 * even.fullest[0]


def test_many_cases_are_as_one_each():
    sizes = [np.array(v, float) for v in ([1, 64], [8, 2], [128, 8], [4, 1])]
    many = many_named_loads(["balanced", "power_law_1.2"], *sizes)
    one = named_loads("power_law_1.2", 64, 2, 8, 1)
    assert many.tiles[1].tolist() == one.tiles[0].tolist()


@pytest.mark.parametrize(
    "name", ["uniform?", "power_law_", "power_law_x", "power_law_-1", "power_law_1.0", "power_law_nan"]
)
def test_unknown_distributions_are_refused(name):
    with pytest.raises(DataError, match="distribution"):
        named_loads(name, 8, 2, 8, 1)


def test_even_loads_by_hand():
    loads = even_loads(np.array([48.0, 40.0]), np.array([2.0, 3.0]), np.array([1.0, 1.5]))
    assert loads.tiles[0].tolist() == [4, 2, 2, 2, 2]  # 24 rows each
    assert loads.tiles[1][:2] == pytest.approx([3, 3])  # 13 or 14 rows each
    assert loads.fullest[1] == pytest.approx(20.0)


def test_plain_tiles():
    sizes = [np.array(v, float) for v in ([1, 64, 256], [128, 128, 128])]
    assert launch_tiles(["bfloat16"] * 3, *sizes).rows.tolist() == [16, 16, 64]
    assert launch_tiles(["fp8_block"], *(s[1:2] for s in sizes)).columns.tolist() == [128]
