import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic_run import EVERYTHING, MEASURED_NULLS, Plan, write_killed_run, write_run

from thermoe.analysis import write_report
from thermoe.analysis.command import Report
from thermoe.analysis.figures import PLOTS
from thermoe.analysis.figures_experts import usage_shares
from thermoe.analysis.figures_time import bin_means, time_series
from thermoe.analysis.load import RunFolder
from thermoe.analysis.svg import inline
from thermoe.analysis.view import RunView
from thermoe.errors import DataError, ThermoeError

TINY = {"workloads": ("prose",), "num_batches": 3, "num_steps": 6, "samples": 3, "num_layers": 2, "num_experts": 3}


class Page(HTMLParser):
    """What a browser would load or refer to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.refs, self.links, self.words = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("src", "href", "xlink:href"):
                (self.refs if value.startswith("#") else self.links).append(value)
            self.refs += re.findall(r"url\((#[^)]*)\)", value or "")

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page(run_dir):
    return write_report([run_dir])


@pytest.fixture
def few_plots(monkeypatch):
    """For tests of something else than the figures, which take most of the time."""
    monkeypatch.setattr("thermoe.analysis.figures.PLOTS", (PLOTS[0], PLOTS[4]))


def drawn(page):
    return {path.stem for path in (page.parent / "figures").glob("*.pdf")}


def test_the_report_stands_alone_and_its_ids_are_unique(page):
    text = page.read_text()
    found = Page(text)
    assert page.name == "report.html"
    assert "script" not in found.tags
    assert all(re.match(r"data:|figures/|tables/", link) for link in found.links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(found.ids) == len(set(found.ids))
    assert {ref[1:] for ref in found.refs} <= set(found.ids)


def test_the_report_opens_with_the_answer(page):
    words = " ".join(Page(page.read_text()).words)
    assert words.index("less energy per token than baseline (simulated") < words.index("What each strategy saves")
    for heading in ("Limits", "How to reproduce", "Environment and configuration"):
        assert heading in words


def test_every_figure_is_there_in_every_form_and_says_its_kind(page):
    names = {plot.name for plot in PLOTS}
    assert drawn(page) == names
    for name in names:
        svg = (page.parent / "figures" / f"{name}.svg").read_text()
        ElementTree.fromstring(svg)
        # Matplotlib writes the text of each label beside its outlines.
        assert "simulated, priced as qwen3-30b-a3b; model reference_moe" in svg
        assert (page.parent / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    for name in ("strategies", "details", "tests", "energy_estimates"):
        assert (page.parent / "tables" / f"{name}.csv").stat().st_size > 100
        assert "\\toprule" in (page.parent / "tables" / f"{name}.tex").read_text()


def test_inline_figures_follow_the_theme_of_the_page(page):
    svgs = re.findall(r"<svg.*?</svg>", page.read_text(), flags=re.DOTALL)
    assert len(svgs) == len(PLOTS)
    for svg in svgs:
        assert "currentColor" in svg
        assert "#1c1d1f" not in svg


def test_the_same_run_gives_the_same_files(run_dir, few_plots, tmp_path):
    first, again = write_report([run_dir], tmp_path / "1"), write_report([run_dir], tmp_path / "2")
    assert again.read_text() == first.read_text()
    for name in ("figures/power.pdf", "figures/power.svg", "tables/tests.csv"):
        assert (again.parent / name).read_bytes() == (first.parent / name).read_bytes()


def test_a_killed_run_is_reported_and_called_unfinished(tmp_path):
    page = write_report([write_killed_run(tmp_path / "killed")])
    assert "unfinished run" in page.read_text()
    assert "energy_saved" in drawn(page)


def test_a_measured_run_names_the_gpu_and_leaves_out_what_it_lacks(tmp_path):
    page = write_report([write_run(tmp_path / "gpu", Plan(kind="measured", nulls=MEASURED_NULLS, **TINY))])
    assert "perplexity_energy" not in drawn(page)
    svg = (page.parent / "figures/energy_per_token.svg").read_text()
    assert "measured on NVIDIA H200" in svg
    assert "priced as" not in svg


@pytest.mark.parametrize(
    "plan",
    [
        Plan(num_batches=1, num_steps=1, samples=1, num_layers=1, num_experts=1),
        Plan(**TINY, strategies=("kernel_aware",)),
        Plan(**TINY, strategies=("baseline",)),
        Plan(**TINY, kind="replayed", seeds=(0, 1), strategies=("baseline", "a", "b", "c", "d", "e")),
    ],
    ids=["single batch", "one strategy", "only baseline", "two seeds of unknown strategies"],
)
def test_unusual_runs_are_reported(tmp_path, plan):
    page = write_report([write_run(tmp_path / "run", plan)])
    assert "energy_per_token" in drawn(page)


def test_without_telemetry_power_is_that_of_the_steps(tmp_path):
    assert "power" in drawn(write_report([write_run(tmp_path / "run", Plan(**TINY, telemetry=False))]))


def test_a_run_of_nulls_draws_nothing_and_says_so(tmp_path):
    page = write_report([write_run(tmp_path / "run", Plan(nulls=EVERYTHING, **TINY))])
    text = page.read_text()
    assert drawn(page) == set()
    assert "nothing can be compared" in text
    assert text.count("Not drawn") == 2


def test_names_cannot_inject_markup_or_mathematics(tmp_path):
    evil = "<script>alert('x')</script> $\\frac{1}$ --> & \"q\""
    plan = Plan(**TINY | {"workloads": (evil,)}, strategies=("baseline", evil[:30]))
    page = write_report([write_run(tmp_path / "a & <b>", plan)])
    text = page.read_text()
    assert "script" not in Page(text).tags
    assert "b" not in Page(text).tags
    assert "&lt;script&gt;" in text
    for svg in (page.parent / "figures").glob("*.svg"):
        root = ElementTree.fromstring(svg.read_text())
        assert not [e for e in root.iter() if e.tag.endswith("script")]


def test_several_runs_share_one_page(tmp_path):
    runs = [
        write_run(tmp_path / name, Plan(**TINY, kind=kind)) for name, kind in (("a", "simulated"), ("b", "measured"))
    ]
    page = write_report(runs)
    assert page == tmp_path / "comparison" / "report.html"
    assert {"energy_saved", "run1-power", "run2-power"} <= drawn(page)
    svg = (page.parent / "figures/energy_per_token.svg").read_text()
    assert "simulated, priced as" in svg  # kinds have panels of their own, each with its kind
    assert "measured on" in svg


def test_out_may_be_a_page_or_a_folder(run_dir, few_plots, tmp_path):
    (tmp_path / "v1.2").mkdir()
    assert write_report([run_dir], tmp_path / "v1.2") == tmp_path / "v1.2" / "report.html"


def test_what_cannot_be_written_is_one_line(run_dir, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ThermoeError, match="cannot be written") as error:
        write_report([run_dir], tmp_path / "file" / "report.html")
    assert "\n" not in str(error.value)


def test_without_the_extra_one_line_says_how_to_get_it(run_dir, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    with pytest.raises(ThermoeError, match=r"needs matplotlib: install .*thermoe\[report\]"):
        write_report([run_dir])


def test_the_command_prints_the_table_and_the_path(run_dir, few_plots, tmp_path, capsys):
    assert Report((run_dir,), tmp_path / "r.html").execute() == 0
    printed = capsys.readouterr().out
    assert "kernel_aware_ttha" in printed
    assert "simulated" in printed
    assert str(tmp_path / "r.html") in printed


def test_the_command_refuses_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(DataError):
        Report((tmp_path,)).execute()


def test_usage_shares_sum_to_one_hundred_in_every_layer(run_dir):
    shares = usage_shares(RunView.of(RunFolder(run_dir)))
    for share in shares.values():
        assert share.shape == (6, 16)
        np.testing.assert_allclose(share.sum(axis=1), 100.0)


def test_time_runs_on_over_batches_whatever_the_clock_did_between(run_dir):
    run = RunFolder(run_dir)
    rows = run.tables["steps"].query("workload == 'prose' and strategy == 'baseline'").copy()
    rows["power_w"] = np.arange(len(rows), dtype=float)
    usual, _ = time_series(rows, "power_w")
    rows.loc[rows["batch_index"] == 2, "time_s"] -= 1e6  # resumed after a reboot
    jumped, _ = time_series(rows, "power_w")
    assert (np.diff(jumped) > 0).all()
    assert jumped[-1] == pytest.approx(usual[-1], rel=0.02)


def test_bin_means_keep_the_mean_and_the_ends():
    x = np.arange(1003.0)
    bins_x, bins_y = bin_means(x, 2 * x, max_points=100)
    assert len(bins_x) == 100
    np.testing.assert_allclose(bins_y, 2 * bins_x)
    assert bins_x[0] == pytest.approx(4.5)
    assert bins_x[-1] == pytest.approx(997.0)
    assert bin_means(x[:5], x[:5])[0].tolist() == [0, 1, 2, 3, 4]


def test_inlining_renames_every_reference():
    svg = (
        '<?xml version="1.0"?><svg width="9pt" height="9pt" viewBox="0 0 9 9"><metadata>x</metadata><!-- c -->'
        '<clipPath id="p"/><use xlink:href="#g" clip-path="url(#p)" style="fill: #1c1d1f"/></svg>'
    )
    assert inline(svg, "n", "said") == (
        '<svg viewBox="0 0 9 9" role="img" aria-label="said">'
        '<clipPath id="n-p"/><use xlink:href="#n-g" clip-path="url(#n-p)" style="fill: currentColor"/></svg>'
    )
