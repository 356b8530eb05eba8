"""Correlation of kernel types with power, on traces whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from made_up_costs import kernels

from thermoe.analysis.costs.kernel_power import kernel_power, read_kernels
from thermoe.errors import DataError

SHARES = np.random.default_rng(1).uniform(0.1, 0.9, 40)


def by_type(found):
    return {t.op_type: t for t in found.types}


def test_power_that_follows_the_products_correlates_with_them_alone():
    (found,) = kernel_power(kernels(SHARES, 100.0 + 400.0 * SHARES))
    types = by_type(found)
    assert found.windows == len(SHARES)
    assert types["gemm"].correlation.value == pytest.approx(1.0, abs=1e-4)
    assert types["copy"].correlation.value == pytest.approx(-1.0, abs=1e-4)
    assert types["gemm"].correlation.low > 0.99


def test_shares_energy_and_power_are_sums_over_the_kernels():
    shares, power = np.full(10, 0.4), np.full(10, 200.0)
    (found,) = kernel_power(kernels(shares, power))
    types = by_type(found)
    assert types["gemm"].time_share == pytest.approx(2.0 / 3.0, rel=1e-6)
    assert types["copy"].energy_j == pytest.approx(10 * 200.0 * 0.02)
    assert types["gemm"].power_w == pytest.approx(200.0)
    assert types["gemm"].correlation is None  # nothing varies


def test_unrelated_power_has_an_interval_around_zero_most_of_the_time():
    crossing = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        (found,) = kernel_power(kernels(rng.uniform(0.1, 0.9, 40), 300.0 + 20.0 * rng.standard_normal(40)))
        _, low, high = by_type(found)["gemm"].correlation
        crossing += low < 0.0 < high
    assert 14 <= crossing <= 20


def test_devices_that_differ_as_a_whole_do_not_make_a_correlation():
    rng = np.random.default_rng(3)
    quiet = kernels(rng.uniform(0.1, 0.3, 40), 100.0 + rng.standard_normal(40), device=0)
    busy = kernels(rng.uniform(0.7, 0.9, 40), 600.0 + rng.standard_normal(40), device=1)
    (found,) = kernel_power(pd.concat([quiet, busy]))
    assert found.devices == 2
    assert abs(by_type(found)["gemm"].correlation.value) < 0.35


def test_a_correlation_within_devices_is_not_hidden_by_their_differences():
    first, second = SHARES[:20], SHARES[20:]
    quiet, busy = kernels(first, 100.0 + 50.0 * first, device=0), kernels(second, 600.0 + 50.0 * second, device=1)
    (found,) = kernel_power(pd.concat([quiet, busy]))
    assert by_type(found)["gemm"].correlation.value == pytest.approx(1.0, abs=1e-3)


def test_a_kernel_over_several_windows_counts_in_each():
    table = kernels(np.full(12, 0.5), np.linspace(100.0, 320.0, 12))
    long = table.iloc[0].to_dict() | {"op_type": "norm", "start_ns": 0, "end_ns": int(1.2e9), "power_w_mean": 200.0}
    (found,) = kernel_power(pd.concat([table, pd.DataFrame([long])]), window_s=0.1)
    assert found.windows == 12
    assert by_type(found)["norm"].correlation is None  # it fills every window alike


def test_idle_windows_are_left_out_and_short_traces_say_why():
    table = kernels(SHARES, 100.0 + 400.0 * SHARES)
    gap = table[(table["start_ns"] < 1e9) | (table["start_ns"] > 2e9)]
    (found,) = kernel_power(gap, window_s=0.1)
    assert found.dropped >= 9
    (short,) = kernel_power(kernels(SHARES[:3], SHARES[:3] * 100))
    assert "a correlation needs 8" in short.note
    assert all(t.correlation is None for t in short.types)


def test_kinds_of_power_are_told_apart():
    both = pd.concat([kernels(SHARES, SHARES * 100), kernels(SHARES, SHARES * 100, kind="simulated")])
    assert [found.kind for found in kernel_power(both)] == ["measured", "simulated"]


def test_kernels_without_power_or_time_give_nothing():
    table = kernels(SHARES, SHARES * 100)
    assert kernel_power(table.assign(power_w_mean=np.nan)) == []
    assert kernel_power(table.assign(start_ns=pd.NA)) == []
    assert kernel_power(table.iloc[:0]) == []


@pytest.mark.parametrize(("window_s", "words"), [(0.0, "positive"), (float("nan"), "positive"), (1e-5, "or more")])
def test_windows_that_cannot_be_are_refused(window_s, words):
    with pytest.raises(DataError, match=words):
        kernel_power(kernels(SHARES, SHARES * 100), window_s)


def test_tables_are_read_from_both_formats(tmp_path):
    table = kernels(SHARES, SHARES * 100)
    table.to_parquet(tmp_path / "k.parquet")
    table.to_csv(tmp_path / "k.csv", index=False)
    assert len(read_kernels([tmp_path / "k.parquet", tmp_path / "k.csv"])) == 2 * len(table)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("k.parquet", "no parquet", "cannot be read"),
        ("k.csv", "a,b\n1,2\n", "lacks op_type"),
        ("missing.csv", None, "cannot be read"),
        (
            "k.csv",
            "op_type,device_id,start_ns,end_ns,power_w_mean,energy_j,energy_kind,source_file\ngemm,0,x,2,3,4,measured,f\n",
            "start_ns holds something other than numbers",
        ),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        read_kernels([tmp_path / name])
    assert "\n" not in str(caught.value)
