import numpy as np
import pytest

from thermoe.cost.forest import Boosting, Forest, boost
from thermoe.errors import DataError


def data(count, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 5)).astype(np.float32)
    return x, np.where(x[:, 0] > 0, x[:, 1], -x[:, 2]) + 0.01 * rng.standard_normal(count)


def test_arrays_say_what_the_library_that_fitted_them_says():
    ensemble = pytest.importorskip("sklearn.ensemble", reason="trees are fitted with scikit-learn")
    x, y = data(3000)
    settings = Boosting(trees=15, leaves=20, depth=6)
    forest = boost(x, y, settings)
    theirs = ensemble.HistGradientBoostingRegressor(
        max_iter=15,
        max_leaf_nodes=20,
        max_depth=6,
        learning_rate=settings.learning_rate,
        min_samples_leaf=settings.least_rows,
        early_stopping=False,
        random_state=0,
    ).fit(x, y)
    assert np.abs(forest(x) - theirs.predict(x)).max() < 1e-5
    assert np.abs(forest(x[:1]) - forest(x)[:1]).max() == 0
    again = Forest.from_dict(forest.as_dict(), 5, "test")
    assert (again(x) == forest(x)).all()


def by_hand() -> Forest:
    """x0 > 1 ? (x1 > 5 ? 30 : 20) : 10, plus a tree of one leaf of 1."""
    return Forest.from_dict(
        {
            "feature": [0, 0, 1, 0, 0, 0],
            "threshold": [1.0, None, 5.0, None, None, None],
            "children": [1, 2, 1, 1, 3, 4, 3, 3, 4, 4, 5, 5],
            "value": [0, 10, 0, 20, 30, 1],
            "roots": [0, 5],
            "depth": 2,
            "offset": 100.0,
        },
        2,
        "test",
    )


def test_a_tree_by_hand():
    assert by_hand()(np.array([[1.0, 9.0], [1.5, 5.0], [1.5, 6.0]])).tolist() == [111.0, 121.0, 131.0]


@pytest.mark.parametrize(
    "change",
    [
        {"feature": [0, 0, 2, 0, 0, 0]},
        {"children": [1, 2, 1, 1, 3, 6, 3, 3, 4, 4, 5, 5]},
        {"children": [1, 2]},
        {"value": [0, 10, 0, float("inf"), 30, 1]},
        {"value": [0, 10, 0, 10**400, 30, 1]},
        {"depth": 10**9},
        {"roots": [-1]},
        {"roots": None},
    ],
)
def test_nodes_that_point_nowhere_are_refused(change):
    with pytest.raises(DataError):
        Forest.from_dict(by_hand().as_dict() | change, 2, "test")
