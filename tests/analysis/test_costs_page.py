"""The page of costs: what stands on it, and what it says where data is missing."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_costs import KEY, cost_row, expert_rows, kernels, part_rows

from thermoe.analysis.costs import figures_accuracy, figures_axes, figures_heat
from thermoe.analysis.costs.accuracy import covered, error_rows, wilson
from thermoe.analysis.costs.names import short
from thermoe.analysis.costs.series import at_random, grouped
from thermoe.analysis.costs.view import Source, make_view
from thermoe.commands.costs_report import CostsReport
from thermoe.cost.database import CostDatabase, Failure
from thermoe.cost.held_out import Predictions
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.errors import ConfigError, DataError
from thermoe.types import Kind


def save(path: Path, rows, failures=()) -> Path:
    CostDatabase(list(rows), list(failures)).save(path)
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    database = save(folder / "a.costs.json", [*expert_rows(), *part_rows()], [Failure("copy <b>", "out of memory")])
    predicted = save(
        folder / "p.costs.json",
        [
            replace(r, device=replace(KEY, gpu="NVIDIA B200"), kind=Kind.PREDICTED, temp_c=None)
            for r in expert_rows()[:6]
        ],
    )
    KernelCostModel().fit(CostDatabase.load(database)).save(folder / "m.json")
    shares = np.random.default_rng(1).uniform(0.1, 0.9, 40)
    kernels(shares, 100.0 + 400.0 * shares).to_parquet(folder / "k.parquet")
    out = folder / "deep" / "page.html"
    command = CostsReport(
        databases=(database, predicted), model=folder / "m.json", kernels=(folder / "k.parquet",), out=out, held_out=3
    )
    assert command.execute() == 0
    return out.read_text()


def words_of(page: str) -> str:
    return " ".join(re.sub(r"<svg.*?</svg>|<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL).split())


def test_the_page_stands_alone(page):
    assert "<script" not in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(re.match(r"#|data:", link) for link in links)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_every_axis_is_drawn_and_says_kind_hardware_and_n(page):
    for axis in ("shape", "tokens", "touched experts", "bits"):
        assert f"expert_mlp against {axis}" in page
    for title in ("Predicted against measured", "Residuals", "Coverage of the intervals", "Cost against temperature"):
        assert f"<h4>{title}</h4>" in page
    # Matplotlib writes the text of each label beside its outlines; comments are dropped from the page.
    assert "measured on NVIDIA H200" in words_of(page)
    assert "predicted for NVIDIA B200" in words_of(page)


def test_the_page_opens_with_the_answer(page):
    words = words_of(page)
    assert "shapes left out of the fit: predictions miss latency by" in words
    assert "a calibrated roofline by" in words
    # Of two calls with all parts this one is explained within 25.6 %, the one in int4 worse.
    assert "An expert MLP call (qwen3-30b-a3b, thermoe, bfloat16, 16 tokens on 82 experts; measured)" in words
    assert "(+25.6 %)" in words
    assert "gemm goes with power (measured) most: correlation +1.00" in words
    assert "which is no cause" in words


def test_calls_failures_and_the_command_are_on_the_page(page):
    words = words_of(page)
    assert "qwen3-30b-a3b thermoe int4, 128 rows, 82 experts" in words
    assert "copy &lt;b&gt;: out of memory" in page
    assert "thermoe costs report a.costs.json p.costs.json --model m.json --kernels k.parquet --held-out 3" in words


def test_measured_and_predicted_rows_are_never_in_one_source(tmp_path):
    rows = expert_rows()[:4]
    other = [replace(r, kind=Kind.PREDICTED, occasion="x") for r in rows]
    view = make_view([save(tmp_path / "a.costs.json", [*rows, *other])])
    assert [(s.kind, len(s.rows)) for s in view.sources] == [(Kind.MEASURED, 4), (Kind.PREDICTED, 4)]


def test_missing_columns_are_said_and_one_row_is_a_page(tmp_path, capsys):
    database = save(tmp_path / "a.costs.json", [cost_row()])
    assert CostsReport(databases=(database,), out=tmp_path / "p.html", held_out=2).execute() == 0
    words = words_of((tmp_path / "p.html").read_text())
    assert "No row has an energy" in words
    assert "No row has a temperature" in words
    assert "No row counts its bytes" in words
    assert "leaving shapes out needs 2" in words
    assert "lacks dispatch in bfloat16" in words
    assert "No kernel table was given" in words


def test_what_the_model_does_not_know_is_said(tmp_path):
    database = save(tmp_path / "a.costs.json", [*expert_rows(energy=False), cost_row(op="norm", impl="torch")])
    model = tmp_path / "m.json"
    fitted = KernelCostModel().fit(CostDatabase(expert_rows(energy=False)))
    fitted.save(model)
    (source,) = make_view([database], model=model).sources
    assert any("not fitted to norm" in note for note in source.notes)
    fitted.fitted_on_ = "NVIDIA A100"
    fitted.save(model)
    (source,) = make_view([database], model=model).sources
    assert source.model is None
    assert any("fitted on NVIDIA A100" in note for note in source.notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), ('{"format": "thermoe.co', "not whole JSON"), ("{}", "is no thermoe.costs file")],
)
def test_broken_databases_are_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "a.costs.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        make_view([path])
    assert "\n" not in str(caught.value)


def test_empty_databases_and_wrong_settings_are_refused(tmp_path):
    empty, full = save(tmp_path / "e.costs.json", []), save(tmp_path / "f.costs.json", [cost_row()])
    with pytest.raises(DataError, match="no row, nothing to report"):
        make_view([empty])
    smoke = save(tmp_path / "s.costs.json", [cost_row(occasion="smoke 2026-01-01T00:00:00Z")])
    with pytest.raises(DataError, match="without --smoke"):
        make_view([smoke])
    assert len(make_view([smoke, full]).sources[0].rows) == 1
    with pytest.raises(ConfigError, match="choose from expert_mlp"):
        make_view([full], ops=("sing",))
    with pytest.raises(ConfigError, match="no database"):
        make_view([])
    with pytest.raises(ConfigError, match=r"\.html"):
        CostsReport(databases=(full,), out=tmp_path / "p.pdf")
    with pytest.raises(ConfigError, match="2 folds"):
        CostsReport(databases=(full,), out=tmp_path / "p.html", held_out=1)


def predictions(measured, said, half) -> Predictions:
    n = len(measured)
    nan = np.full(n, np.nan)
    seconds, joules = np.asarray(measured, float), nan
    return Predictions(
        seconds,
        joules,
        np.asarray(said, float),
        nan,
        np.full(n, half),
        nan,
        nan,
        nan,
        nan,
        nan,
        np.ones(n, bool),
        np.full(n, "thermoe int4"),
    )


def test_an_implementation_that_a_fit_has_not_seen_is_left_aside(tmp_path):
    strange = [
        replace(r, impl="other", latency_us=9.0, latency_low_us=9.0, latency_high_us=9.0) for r in expert_rows()[:2]
    ]
    (source,) = make_view([save(tmp_path / "a.costs.json", [*expert_rows(), *strange])], folds=3).sources
    assert len(source.unseen["expert_mlp"]) == len(expert_rows())
    assert any(note.startswith("2 measured rows are left aside") for note in source.notes)


def test_errors_by_hand():
    rows = error_rows({"a": predictions([1e-4, 2e-4], [1.1e-4, 1.0e-4], 0.2), "b": predictions([1e-6], [1e-6], 0.2)})
    assert [(r["op"], r["quantity"], r["rows"]) for r in rows] == [
        ("all", "latency", 3),
        ("a", "latency", 2),
        ("b", "latency", 1),
    ]
    a = rows[1]
    assert a["mape_pct"] == pytest.approx(30.0)
    assert a["coverage_pct"] == 50.0
    assert (a["long_rows"], a["long_mape_pct"]) == (1, pytest.approx(50.0))
    assert a["coverage_pct_low"] < 50.0 < a["coverage_pct_high"]


def test_coverage_is_unknown_where_there_is_no_interval():
    found = covered(np.array([1.0, 1.0, np.nan]), np.array([1.05, 2.0, 1.0]), np.array([0.1, 0.1, 0.1]))
    assert found[:2].tolist() == [1.0, 0.0]
    assert np.isnan(found[2])
    assert np.isnan(covered(np.ones(1), np.ones(1), np.array([np.nan]))).all()
    # Agresti and Coull (1998) give [0.722, 1] for 10 of 10 at 95 %; at 90 % the lower end is n / (n + z^2).
    assert wilson(1.0, 10)[0] == pytest.approx(10 / (10 + 1.6449**2), rel=1e-4)


def test_series_are_lines_with_two_places_and_each_shape_once_before_one_comes_again():
    rows = [cost_row(float(t), tokens=t, hidden_size=d) for d in (64, 128) for t in (1, 2, 4)]
    rows += [cost_row(float(t), tokens=t, hidden_size=64, dtype="int4") for t in (1, 2, 4, 8)]
    rows += [cost_row(1.0, tokens=1, hidden_size=256)]
    series, beyond = grouped(rows, lambda r: f"{r.hidden_size} {r.dtype}", lambda r: float(r.tokens))
    assert list(series) == ["64 int4", "128 bfloat16", "64 bfloat16"]
    assert [r.tokens for r in series["128 bfloat16"]] == [1, 2, 4]
    assert beyond == 0


def test_lines_over_tokens_take_batches_as_random_routing_makes_them():
    rows = [cost_row(active_experts=n) for n in (60, 80, 90, 128)] + [cost_row(load="zipf")]
    assert [r.active_experts for r in at_random(rows)] == [80, 90]  # 82.4 at 16 tokens


@pytest.mark.parametrize(("value", "said"), [(0.05, "0.05"), (3000, "3000"), (20000, "20k"), (1.5e6, "1.5M")])
def test_ticks_are_short(value, said):
    assert short(value) == said


def test_a_figure_holds_the_rows_of_its_operation():
    rows = expert_rows()
    source = Source(gpu=KEY.gpu, kind=Kind.MEASURED, rows=rows)
    figure, caption = figures_axes.against_shape(source, "expert_mlp")
    drawn = sum(len(line.get_xdata()) for line in figure.axes[0].lines)
    assert drawn == len(rows)
    assert f"n = {len(rows)} rows, {len(rows)} with energy" in figure.get_suptitle()
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()][-1] == "mixtral-8x7b"
    assert "Every point is a row" in caption
    assert figures_axes.against_bits(source, "expert_mlp") is None
    assert figures_accuracy.residuals(source) is None


def test_temperature_is_drawn_only_where_it_varies():
    cold = [replace(r, temp_c=None) for r in expert_rows()]
    assert figures_heat.against_temperature(Source(gpu="x", kind=Kind.MEASURED, rows=cold)) is None
    figure, caption = figures_heat.against_temperature(Source(gpu="x", kind=Kind.MEASURED, rows=expert_rows()))
    assert len(figure.axes) == 1
    assert "power makes heat" in caption
