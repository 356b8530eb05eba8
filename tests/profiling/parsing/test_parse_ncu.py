"""ncu tables: both layouts, locales, units, noise around the table."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thermoe.errors import DataError
from thermoe.profiling.parsing import NothingToParseError, parse_profiler_output
from thermoe.profiling.parsing.ncu_values import Locale, base_unit, find_locale

HEAD = ["ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream"]
NEW_HEAD = [*HEAD, "Block Size", "Grid Size", "Device", "CC"]
NAME = "void ns::my_gemm<float, (int)4>(float const*, int)"
NOISE = '==PROF== Connected to process 41\nloss 0.5, step 3\n==PROF== Profiling "my_gemm": 0%....100% - 8 passes\n'

RAW_METRICS = {
    "gpu__time_duration.sum": ("usecond", 12.5),
    "dram__bytes_read.sum": ("Mbyte", 53.261312),
    "dram__bytes_write.sum": ("byte", 1024.0),
    "lts__t_sector_hit_rate.pct": ("%", 65.77),
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": ("%", 7.5),
    "sm__sass_thread_inst_executed_op_fadd_pred_on.sum": ("inst", 1_000.0),
    "sm__sass_thread_inst_executed_op_ffma_pred_on.sum": ("inst", 27_595_520.0),
    "sm__inst_executed_pipe_tensor_op_hmma.sum": ("inst", 4_096.0),
    "gpc__cycles_elapsed.avg.per_second": ("Ghz", 1.755),
    "launch__registers_per_thread": ("register/thread", 32.0),
    "launch__waves_per_multiprocessor": ("", 6.4),
}
WANTED = {
    "kernel_name": "my_gemm",
    "kernel_signature": NAME,
    "duration_ns": 12_500,
    "dram_read_bytes": pytest.approx(53_261_312.0),
    "dram_write_bytes": 1024.0,
    "l2_hit_rate_pct": 65.77,
    "sm_throughput_pct": 7.5,
    "fp32_flops": 1_000 + 2 * 27_595_520,
    "tensor_instructions": 4_096.0,
    "sm_clock_mhz": pytest.approx(1755.0),
    "registers_per_thread": 32,
    "waves_per_sm": 6.4,
    "process_id": 41,
    "stream_id": 7,
}


def written(value, decimal, grouping):
    """The value as a locale writes it, with thousands grouped."""
    whole, _, fraction = f"{value:.6f}".rstrip("0").partition(".")
    grouped = f"{int(whole):,}".replace(",", grouping)
    return grouped + (decimal + fraction if fraction else "")


def long_table(decimal=".", grouping=",", head=tuple(NEW_HEAD), delimiter=","):
    out = io.StringIO()
    table = csv.writer(out, quoting=csv.QUOTE_ALL, delimiter=delimiter)
    table.writerow([*head, "Section Name", "Metric Name", "Metric Unit", "Metric Value"])
    values = dict(zip(NEW_HEAD, start("3"), strict=True))
    for name, (unit, value) in RAW_METRICS.items():
        table.writerow([*(values[n] for n in head), "metrics", name, unit, written(value, decimal, grouping)])
    table.writerow([*(values[n] for n in head), "metrics", "dram__bytes_op_read.sum", "byte", "n/a"])
    return out.getvalue()


def wide_table(decimal=".", grouping=","):
    out = io.StringIO()
    table = csv.writer(out, quoting=csv.QUOTE_ALL)
    table.writerow([*NEW_HEAD, *RAW_METRICS])
    table.writerow([*[""] * len(NEW_HEAD), *(unit for unit, _ in RAW_METRICS.values())])
    for index in ("3", "4"):
        cells = [written(value, decimal, grouping) for _, value in RAW_METRICS.values()]
        table.writerow([*start(index), *cells])
    return out.getvalue()


def start(index):
    return [index, "41", "python", "127.0.0.1", NAME, "1", "7", "(256, 1, 1)", "(64, 16, 1)", "0", "9.0"]


def parse(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return parse_profiler_output(path)


@pytest.mark.parametrize(("decimal", "grouping"), [(".", ","), (",", "."), (",", "\u202f"), (".", "’"), (".", "")])
@pytest.mark.parametrize("layout", [long_table, wide_table])
def test_both_layouts_give_the_same_in_every_locale(tmp_path, layout, decimal, grouping):
    table = parse(tmp_path, NOISE + layout(decimal, grouping))
    assert len(table) == (1 if layout is long_table else 2)
    for row in table.to_dict("records"):
        assert {name: row[name] for name in WANTED} == WANTED
        assert (row["grid_size"], row["block_size"], row["device_id"]) == (1024, 256, 0)
    assert table[["start_ns", "end_ns", "energy_j", "range_name"]].isna().all(axis=None)


def test_the_older_header_without_sizes_and_device_is_read(tmp_path):
    row = parse(tmp_path, long_table(head=HEAD)).to_dict("records")[0]
    assert {name: row[name] for name in WANTED} == WANTED


def test_semicolons_as_excel_writes_them_are_read(tmp_path):
    row = parse(tmp_path, "\ufeff" + long_table(",", ".", delimiter=";")).to_dict("records")[0]
    assert {name: row[name] for name in WANTED} == WANTED


def test_output_of_the_program_after_the_header_is_passed_over_and_counted(tmp_path):
    lines = long_table().splitlines()
    lines[3:3] = ["loss 0.25, step 4", "==WARNING== something, with, commas"]
    table = parse(tmp_path, "\n".join(lines))
    assert {name: table.to_dict("records")[0][name] for name in WANTED} == WANTED
    assert "passed over 2 lines" in table.attrs["notes"][0]


def test_a_label_that_means_two_things_is_taken_by_its_unit(tmp_path):
    header = ",".join([*NEW_HEAD, "Section Name", "Metric Name", "Metric Unit", "Metric Value"])
    head = ",".join(f'"{cell}"' for cell in start("0"))
    text = f'{header}\n{head},"a","DRAM Throughput","byte/s","123"\n{head},"b","DRAM Throughput","%","61.84"\n'
    assert parse(tmp_path, text)["dram_throughput_pct"].tolist() == [61.84]


def test_of_two_names_for_one_figure_the_better_wins_in_any_order(tmp_path):
    names = ["dram__bytes_read.sum", "dram__bytes_op_read.sum"]
    for order in (names, names[::-1]):
        values = ",".join("1" if name == names[0] else "2" for name in order)
        text = f"ID,Kernel Name,{','.join(order)}\n,,byte,byte\n0,gemm,{values}\n"
        assert parse(tmp_path, text)["dram_read_bytes"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", DataError, "is empty"),
        ("just some output of a program\n", DataError, "no header of an ncu table"),
        (long_table().splitlines()[0] + "\n", NothingToParseError, "no kernel"),
    ],
)
def test_tables_with_nothing_in_them_say_so(tmp_path, text, error, said):
    with pytest.raises(error, match=said):
        parse(tmp_path, text)


@pytest.mark.parametrize(
    ("unit", "want"),
    [
        ("nsecond", (1e-9, "second")),
        ("ms", (1e-3, "second")),
        ("Kbyte", (1e3, "byte")),
        ("Gbyte/second", (1e9, "byte/second")),
        ("cycle/nsecond", (1e9, "cycle/second")),
        ("Mhz", (1e6, "hz")),
        ("register/thread", (1.0, "register/thread")),
        ("%", (1.0, "%")),
        ("", (1.0, "")),
    ],
)
def test_units_are_scaled_to_their_base(unit, want):
    factor, base = base_unit(unit)
    assert (pytest.approx(factor), base) == want


@pytest.mark.parametrize(
    ("cells", "want"),
    [
        (["53,261,312"], Locale(".", ",")),
        (["27.595.520", "1.234"], Locale(",", ".")),
        (["65,77", "1.234"], Locale(",", ".")),
        (["65.77", "1,234"], Locale(".", ",")),
        (["1,234", "CachePreferNone", "n/a", "(1, 1, 1)"], Locale(".", ",")),
        (["4,963,609,951.19"], Locale(".", ",")),
        (["0,125"], Locale(",", ".")),
        (["1e5", "-12", "65,77"], Locale(",", ".")),
    ],
)
def test_the_locale_is_told_by_the_cells_that_can_be_read_one_way_only(cells, want):
    assert find_locale(cells) == want


@given(value=st.floats(0, 1e12), decimal=st.sampled_from(".,"))
def test_a_number_written_in_a_locale_is_read_back(value, decimal):
    locale = Locale(decimal, "," if decimal == "." else ".")
    assert locale.number(written(value, decimal, locale.grouping)) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("text", ["n/a", "", "CachePreferNone", "(1024, 1, 1)", "inf", "nan", "0x10", "1_000", "٣"])
def test_what_is_no_number_is_none(text):
    assert Locale().number(text) is None
