import pandas as pd
import pytest
from synthetic_run import Plan, make_tables, write_heading, write_killed_run, write_run

from thermoe.analysis.load import RunFolder, load_runs
from thermoe.analysis.schema import TABLES, columns_of
from thermoe.errors import DataError

SMALL = Plan(workloads=("prose",), strategies=("baseline", "kernel_aware"), num_batches=2, num_steps=4, samples=2)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_finished_run_is_complete_and_has_every_column(run_dir):
    run = RunFolder(run_dir)
    assert run.is_complete
    assert run.label == "demo"
    assert run.config["kernel_aware"]["k0"] == 4
    assert len(run.tables["batches"]) == 2 * 5 * 5
    for name in TABLES:
        assert list(run.tables[name].columns) == list(columns_of(name))


def test_a_killed_run_gives_its_finished_parts_and_no_others(tmp_path):
    run = RunFolder(write_killed_run(tmp_path / "killed", num_parts=12))
    assert not run.is_complete
    assert len(run.tables["batches"]) == 12
    assert len(run.tables["steps"]) == 12 * 64
    expected = make_order_of_first(12)
    found = run.tables["batches"][["workload", "strategy", "batch_index"]].itertuples(index=False, name=None)
    assert list(found) == expected


def make_order_of_first(count):
    plan = Plan()
    return [(w, s, batch) for batch in range(plan.num_batches) for w, _, s in plan.arms()][:count]


def test_parts_are_joined_in_numeric_order_beyond_six_digits(tmp_path):
    folder = write_killed_run(tmp_path / "killed", SMALL, num_parts=3)
    (folder / "parts" / "000000").rename(folder / "parts" / "1000000")
    (folder / "parts" / "000002").rename(folder / "parts" / "999999")
    batches = RunFolder(folder).tables["batches"]
    assert list(batches["batch_index"]) == [0, 1, 0]
    assert batches["strategy"].iloc[-1] == "baseline"


def test_parts_win_when_the_joined_tables_are_older(tmp_path):
    folder = write_killed_run(tmp_path / "resumed", SMALL, num_parts=4)
    for name, table in make_tables(Plan(**{**SMALL.__dict__, "num_batches": 1})).items():
        table.to_parquet(folder / f"{name}.parquet")
    run = RunFolder(folder)
    assert not run.is_complete
    assert len(run.tables["batches"]) == 4


def test_a_table_that_is_missing_reads_as_empty(tmp_path):
    folder = write_run(tmp_path / "run", SMALL)
    (folder / "telemetry.parquet").unlink()
    run = RunFolder(folder)
    assert run.tables["telemetry"].empty
    assert len(run.tables["batches"]) == 4


def test_folders_of_one_name_get_different_labels(tmp_path):
    paths = [write_run(tmp_path / parent / "run", SMALL) for parent in "abc"]
    assert [run.label for run in load_runs(paths)] == ["run", "run (2)", "run (3)"]


def test_no_folder_at_all():
    with pytest.raises(DataError, match="at least one"):
        load_runs([])


def test_a_path_that_is_no_folder(tmp_path):
    with pytest.raises(DataError, match="run folder") as error:
        RunFolder(tmp_path / "nowhere")
    one_line(error)


@pytest.mark.parametrize("name", ["config.toml", "env.json"])
def test_a_heading_that_is_missing_or_torn(tmp_path, name):
    folder = write_run(tmp_path / "run", SMALL)
    (folder / name).write_bytes(b'{"a": \xff\n\n')
    with pytest.raises(DataError, match="damaged") as error:
        RunFolder(folder)
    one_line(error)
    (folder / name).unlink()
    with pytest.raises(DataError, match="missing") as error:
        RunFolder(folder)
    assert name in one_line(error)


def test_a_run_without_a_finished_batch(tmp_path):
    folder = tmp_path / "young"
    write_heading(folder, SMALL)
    with pytest.raises(DataError, match="no finished batch") as error:
        RunFolder(folder)
    one_line(error)


@pytest.mark.parametrize("content", [b"", b"PAR1 not really parquet PAR1"])
def test_a_corrupt_table(tmp_path, content):
    folder = write_run(tmp_path / "run", SMALL)
    (folder / "steps.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"steps\.parquet") as error:
        RunFolder(folder)
    one_line(error)


def test_a_table_of_something_else(tmp_path):
    folder = write_run(tmp_path / "run", SMALL)
    pd.DataFrame({"colour": ["red"]}).to_parquet(folder / "batches.parquet")
    with pytest.raises(DataError):
        RunFolder(folder)
    table = make_tables(SMALL)["batches"]
    table.assign(energy_j="much").to_parquet(folder / "batches.parquet")
    with pytest.raises(DataError, match="energy_j") as error:
        RunFolder(folder)
    one_line(error)
