"""What is measured on other shapes that look the same to one GPU, on tables whose kernels were tuned by hand."""

import numpy as np
import pandas as pd
import pytest

from thermoe.cost.encoding import Inputs
from thermoe.cost.features import features_of
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.kin import COLUMNS, Kin, joined_without_own, kin_of
from thermoe.cost.roofline import H200
from thermoe.cost.tables import group_table
from thermoe.cost.work import cases_of, work_of_cases
from thermoe.errors import DataError
from thermoe.types import MoEShape

TOKENS = [1, 4, 16, 64, 256, 1024]


def inputs_of(kin: list[str], tokens: list[float], law: list[tuple[float, float]]) -> Inputs:
    count = len(kin)
    blank = np.zeros((count, 1))
    names = np.array(["a/bfloat16"] * count)
    return Inputs(
        blank, blank, np.array(tokens, float), names, np.zeros((count, 4)), np.array(law, float), np.array(kin), blank
    )


def test_no_row_is_told_of_its_own_shape_and_a_question_of_all():
    seen = inputs_of(["x", "x", "x", "y", ""], [4, 4, 16, 4, 4], [(1, 5), (2, 6), (2, 6), (1, 5), (1, 5)])
    targets = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8], [0.9, 1.0]])
    groups = np.array([0, 1, 1, 1, 0])
    told = joined_without_own(seen, targets, groups).features[:, 1:]
    assert told[0] == pytest.approx([0.3, 0.4, 6.4 - 6.0, 2 - 1, 1])  # of shape 1 at 4 tokens; mean power e^6
    assert told[1] == pytest.approx([0.1, 0.2, 5.2 - 6.0, 1 - 2, 1])
    assert told[2] == pytest.approx(told[1])  # shape 0 was measured at 4 tokens only
    assert not told[3:].any()
    asked = inputs_of(["x", "z", ""], [8, 4, 4], [(0, 0)] * 3)
    answer = kin_of(seen, targets).joined(asked).features[:, 1:]
    assert answer[0] == pytest.approx([0.35, 0.45, 6.2 - 6.0, 1.75, 1])  # half way between 4 and 16 tokens
    assert not answer[1:].any()


def test_rows_without_power_tell_nothing_and_without_kin_features_stay():
    seen = inputs_of(["x", "x"], [4, 4], [(1, 5), (1, 5)])
    targets = np.array([[0.1, np.nan], [0.3, 0.4]])
    told = joined_without_own(seen, targets, np.array([0, 1])).features[:, 1:]
    assert told[0] == pytest.approx([0.3, 0.4, 0, 0, 1])
    assert not told[1].any()
    products = inputs_of(["", ""], [4, 4], [(1, 5), (1, 5)])
    assert joined_without_own(products, np.zeros((2, 2)), np.array([0, 1])) is products
    assert kin_of(products, np.zeros((2, 2))).joined(products) is products


@pytest.mark.parametrize(
    "values",
    [
        [],
        {"x": {}},
        {"x": {"log_tokens": [], "figures": []}},
        {"x": {"log_tokens": [0.0, 0.0], "figures": [[0.0] * 4] * 2}},
        {"x": {"log_tokens": [0.0], "figures": [[0.0] * 3]}},
        {"x": {"log_tokens": [0.0], "figures": [[float("nan")] * 4]}},
    ],
)
def test_damaged_kin_are_refused(values):
    with pytest.raises(DataError):
        Kin.from_dict(values, "test")


def hand_tuned(seed: int = 0) -> pd.DataFrame:
    """Layers of ten widths in two models each; some widths draw two fifths of the power at 16 and at 64 tokens."""
    rng = np.random.default_rng(seed)
    rows = []
    for width in range(320, 960, 64):
        is_tuned = rng.random() < 0.5
        for hidden in (1024, 2048):
            for tokens in TOKENS:
                latency_s = 1e-5 + 3 * 2 * hidden * width * min(tokens * 2, 16) / 3e12
                power_w = 600.0 / (2.5 if is_tuned and tokens in (16, 64) else 1.0)
                rows.append(
                    {"num_tokens": tokens, "hidden_size": hidden, "inter_size": width, "topk": 2, "num_experts": 16}
                    | {"latency_s": latency_s * np.exp(0.01 * rng.standard_normal()), "power_w": power_w}
                )
    return pd.DataFrame(rows)


def test_what_was_tuned_by_hand_is_known_from_kin(monkeypatch, tmp_path):
    pytest.importorskip("sklearn", reason="trees are fitted with scikit-learn")
    monkeypatch.setattr("thermoe.cost.correction_fit.NETWORK_ROWS", 50)
    table = hand_tuned()
    is_unseen = (table["hidden_size"] == 2048) & (table["inter_size"] >= 640)
    model = KernelCostModel().fit(table[~is_unseen])
    model.save(tmp_path / "m.json")
    again = KernelCostModel.load(tmp_path / "m.json")
    assert again.corrections_["expert_mlp"].kin.num_columns == COLUMNS
    (unseen,) = group_table(table[is_unseen]).values()
    answers = [m.predict_cases(unseen.cases) for m in (model, again)]
    assert (answers[0].energy_j == answers[1].energy_j).all()
    power_w = answers[0].energy_j / answers[0].latency_s
    tuned_or_not = np.isin(unseen.cases.tokens, (16, 64))
    assert {240, 600} == set(np.round(unseen.power_w[tuned_or_not]))
    assert (np.abs(power_w / unseen.power_w - 1.0)[tuned_or_not] < 0.25).all()


def test_rows_that_are_no_whole_vectors_are_told_apart():
    def features(width: int) -> np.ndarray:
        shape = MoEShape(num_layers=1, hidden_size=1024, inter_size=width, num_experts=8, top_k=2)
        cases = cases_of("expert_mlp", shape, 16.0, 8.0)
        return features_of(cases, work_of_cases(cases).table(), np.ones(1), H200)[0]

    even, odd = features(480), features(479)
    assert (np.abs(even - odd) > 3.9).sum() == 1
    assert np.abs(even - odd).max() == 4.0
