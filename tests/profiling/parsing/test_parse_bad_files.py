"""Files that are no output of a profiler, or no longer: one clear line each, exit code 2."""

import gzip
import random
import sqlite3

import pytest
from nsys_file import NsysFile

from thermoe import cli
from thermoe.errors import DataError
from thermoe.profiling.parsing import parse_profiler_output


def good(path, kernels=3000):
    file = NsysFile(path)
    for i in range(kernels):
        file.kernel("gemm", 100 * i, 100 * i + 50, correlationId=i)
    return file.save()


def empty_table(path):
    file = NsysFile(path)
    file.table("CUPTI_ACTIVITY_KIND_KERNEL")
    return file.save()


def truncated(path):
    whole = good(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def corrupted_page(path):
    whole = bytearray(good(path).read_bytes())
    connection = sqlite3.connect(path)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name LIKE '%KERNEL'").fetchone()
    connection.close()
    whole[(root - 1) * 4096 : root * 4096] = random.Random(0).randbytes(4096)
    path.write_bytes(whole)
    return path


def no_tables(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (a)")
    connection.execute("DROP TABLE t")
    connection.commit()
    connection.close()
    return path


def text(content):
    def write(path):
        path.write_bytes(content)
        return path

    return write


CASES = {
    "empty.sqlite": (text(b""), "is empty"),
    "words.sqlite": (text(b"id,value\n1,2\n" * 20), "is not an SQLite database"),
    "short.sqlite": (text(b"SQLite format 3\0"), "is not an SQLite database"),
    "cut.sqlite": (truncated, "is truncated"),
    "page.sqlite": (corrupted_page, "is damaged"),
    "zero_rows.sqlite": (empty_table, "the kernel table is empty"),
    "no_tables.sqlite": (no_tables, "the database has no tables"),
    "report.nsys-rep": (text(b"\x01\x02"), "nsys export --type sqlite"),
    "report.ncu-rep": (text(b"NVR\0"), "ncu --import FILE --csv"),
    "noise.bin": (text(b"\x00\x01\x02" * 40), "neither a database nor text"),
    "half.json.gz": (text(gzip.compress(b'{"traceEvents": []}' * 99)[:40]), "cannot be unpacked"),
    "empty.csv": (text(b""), "is empty"),
    "other.csv": (text(b"a,b\n1,2\n"), "no header of an ncu table"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_is_one_clear_line_and_exit_code_two(tmp_path, name, capsys):
    make, said = CASES[name]
    path = make(tmp_path / name)
    out = tmp_path / "table.parquet"

    assert cli.main(["parse", str(path), "--out", str(out)]) == 2

    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("thermoe: error: ")
    assert said in err
    assert name in err
    assert not out.exists()


def test_missing_files_folders_and_wrong_names_are_said(tmp_path, capsys):
    path = good(tmp_path / "a.sqlite", 3)
    for arguments, said in (
        ([str(tmp_path / "gone.sqlite"), "--out", "x.parquet"], "no file"),
        ([str(tmp_path), "--out", "x.parquet"], "is a folder"),
        ([str(path), "--out", str(tmp_path / "x.xlsx")], "ends in .parquet or .csv"),
        (["--out", "x.parquet"], "no file to parse"),
        ([str(path), "--out", str(tmp_path / "x.parquet"), "--telemetry", "gone.csv"], "no file gone.csv"),
    ):
        assert cli.main(["parse", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_a_file_without_kernels_among_others_is_noted_and_a_damaged_one_is_not_passed_over(tmp_path, capsys):
    whole, nothing = good(tmp_path / "a.sqlite", 3), empty_table(tmp_path / "b.sqlite")
    out = tmp_path / "table.csv"
    assert cli.main(["parse", str(whole), str(nothing), "--out", str(out)]) == 0
    assert "b.sqlite holds no kernels" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 4
    with pytest.raises(DataError, match="truncated"):
        parse_profiler_output([whole, truncated(tmp_path / "c.sqlite")])


def test_names_with_signs_of_addresses_are_opened_literally(tmp_path):
    path = good(tmp_path / "a?mode=rwc#x%41 b.sqlite", 3)
    assert len(parse_profiler_output(path)) == 3


def test_reading_leaves_the_file_and_its_folder_untouched(tmp_path):
    path = good(tmp_path / "a.sqlite", 3)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")  # a plain reader would put files beside it
    connection.close()
    before = path.read_bytes()
    parse_profiler_output(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
