"""Reading run folders: the joined tables, or the finished parts of a run that was killed or still runs."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from thermoe.analysis.schema import KEY, TABLES, columns_of, conform
from thermoe.errors import DataError


class RunFolder:
    """One run, read whole.

    Attributes:
        path: The folder.
        label: What figures call the run; the folder's name unless given.
        config: Content of `config.toml`.
        env: Content of `env.json`.
        tables: `batches`, `steps`, `experts`, `telemetry`, each with every column of its schema.
        is_complete: Whether the run came to its end: its parts have all been joined.
    """

    def __init__(self, path: Path | str, label: str | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise DataError(f"{self.path} is not a folder: give a run folder written by thermoe run")
        self.label = label or self.path.resolve().name
        self.config = _read_toml(self.path / "config.toml")
        self.env = _read_json(self.path / "env.json")
        parts = _finished_parts(self.path)
        joined = {name: self.path / f"{name}.parquet" for name in TABLES}
        self.is_complete = all(file.is_file() for file in joined.values())
        if self.is_complete and parts:
            self.is_complete = _num_rows(joined["batches"]) >= len(parts)
        if self.is_complete or not parts:
            sources = {name: [file] for name, file in joined.items() if file.is_file()}
        else:
            sources = {
                name: [file for part in parts if (file := part / f"{name}.parquet").is_file()] for name in TABLES
            }
        if not sources.get("batches"):
            raise DataError(f"{self.path} holds no finished batch: let the run finish one, or run it again")
        self.tables = {name: _read_table(name, sources.get(name, [])) for name in TABLES}
        if self.tables["batches"].empty:
            raise DataError(f"{self.path} holds no finished batch: let the run finish one, or run it again")
        self.tables["batches"] = self.tables["batches"].drop_duplicates(list(KEY), keep="last", ignore_index=True)


def load_runs(paths: Sequence[Path | str]) -> list[RunFolder]:
    """Several runs, each with a label of its own: the folder's name, numbered where names repeat."""
    if not paths:
        raise DataError("no run folder given: name at least one")
    runs: list[RunFolder] = []
    for path in paths:
        run = RunFolder(path)
        name, count = run.label, 2
        while any(run.label == other.label for other in runs):
            run.label = f"{name} ({count})"
            count += 1
        runs.append(run)
    return runs


def _finished_parts(path: Path) -> list[Path]:
    """Folders of finished batches in order; unfinished ones carry another name and are passed over."""
    folder = path / "parts"
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()), key=lambda p: int(p.name))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read_text(path))
    except tomllib.TOMLDecodeError as err:
        raise DataError(f"{path} is not valid TOML ({err}): the run folder is damaged") from err


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as err:
        raise DataError(f"{path} is not valid JSON ({err}): the run folder is damaged") from err
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, needed an object: the run folder is damaged")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is missing: is {path.parent} a run folder?") from None
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path} cannot be read ({_one_line(err)}): the run folder is damaged") from err


def _read_table(name: str, files: Sequence[Path]) -> pd.DataFrame:
    pieces = [_read_parquet(file, columns_of(name)) for file in files]
    if not pieces:
        return conform(name, pd.DataFrame())
    try:
        table = pa.concat_tables(pieces, promote_options="permissive")
    except pa.ArrowException as err:
        raise DataError(f"the parts of table {name} do not fit together: {_one_line(err)}") from err
    return conform(name, table.to_pandas())


def _read_parquet(path: Path, wanted: Sequence[str]) -> Any:
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=[name for name in wanted if name in file.schema_arrow.names])
    except (pa.ArrowException, OSError) as err:
        raise DataError(f"{path} cannot be read ({_one_line(err)}): delete it if its batch may be lost") from err


def _num_rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as err:
        raise DataError(f"{path} cannot be read ({_one_line(err)}): delete it to read the parts instead") from err


def _one_line(err: BaseException) -> str:
    return " ".join(str(err).split())
