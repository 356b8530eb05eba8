"""The page on parsing says what the code does."""

import re
from pathlib import Path

from thermoe.profiling.parsing.op_types import KERNEL_TYPES, OTHER, operation_of_range, type_of_kernel
from thermoe.profiling.parsing.table import COLUMNS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "parse.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_snippet_runs_and_prints_what_was_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(compile(snippet, str(PAGE), "exec"), {})
    wanted = [{"kernel_name": "gemm", "op_type": "gemm", "duration_ns": 12500, "dram_read_bytes": 53_261_312.0}]
    assert capsys.readouterr().out == f"{wanted}\n[] 0\n"


def test_every_column_is_explained():
    assert [name for name in COLUMNS if f"`{name}`" not in TEXT] == []


def test_the_table_of_operations_is_that_of_the_code_and_its_words_decide():
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \|$", TEXT.split("words in the name")[1], flags=re.MULTILINE)
    named = [name for names, _ in rows for name in re.findall(r"`(\w+)`", names)]
    assert named == [*(name for name, _ in KERNEL_TYPES), OTHER]
    for names, words in rows[:-1]:
        kinds, groups = re.findall(r"`(\w+)`", names), words.split(";")
        assert len(kinds) == len(groups) or len(groups) == 1
        for kind, group in zip(kinds, groups, strict=False):
            for word in group.split(","):
                assert type_of_kernel([f"void ns::{word.strip()}_x<int>()"]) == kind, word


def test_names_of_ranges_that_are_operations():
    names = ["op:expert_mlp", "thermoe::ttha_update", "OP:Dispatch/layer 3", "attention", "aten::mm", "op:", "", None]
    wanted = ["expert_mlp", "ttha_update", "dispatch", "attention", None, None, None, None]
    assert [operation_of_range(name) for name in names] == wanted
