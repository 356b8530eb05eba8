"""`thermoe report`: write the report and print its table."""

from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable
from rich.text import Text

from thermoe.analysis import tables
from thermoe.analysis.answer import answers
from thermoe.analysis.load import load_runs
from thermoe.analysis.report import page_path, write_views
from thermoe.analysis.view import RunView


@dataclass(frozen=True)
class Report:
    """Write the report of one or several run folders and print what each strategy saves and costs.

    Attributes:
        run_dirs: Run folders written by `thermoe run`.
        out: The page to write, or a folder for it; by default in the run folder.
    """

    run_dirs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="DIR [DIR ...]", help_behavior_hint="(one or more)"),
    ]
    out: Path | None = None

    def execute(self) -> int:
        """Write, print, and return the exit code.

        Raises:
            ThermoeError: A folder cannot be read, or the report cannot be written.
        """
        views = [RunView.of(run) for run in load_runs(self.run_dirs)]
        page = write_views(views, page_path(self.run_dirs, self.out))
        console = Console()
        console.print(rich_table(tables.headline(views), tables.bases(views)))
        for view in views:
            for sentence in answers(view, named=len(views) > 1):
                console.print(Text(sentence))
        console.print(Text(f"report: {page}"), soft_wrap=True)
        return 0


def rich_table(table: tables.Table, caption: str) -> RichTable:
    """A table of the report for the terminal; names are printed as they are, not read as markup."""
    result = RichTable(title=Text(table.title), caption=Text(caption), box=SIMPLE_HEAD, pad_edge=False, padding=0)
    columns = [replace(column, ends=False) for column in table.columns]  # intervals would not fit 80 characters
    for column in columns:
        justify: JustifyMethod = "left" if column.form == "{}" else "right"
        result.add_column(Text(column.heading.replace(" ", "\n")), justify=justify)
    for row, following in zip_longest(table.rows, table.rows[1:]):
        ends_block = following is not None and following["workload"] != row["workload"]
        result.add_row(*(Text(column.cell(row)) for column in columns), end_section=ends_block)
    return result
