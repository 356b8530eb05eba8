"""Reads SQLite files of other programs: read-only, bounded in time and memory, every failure one line."""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import numpy as np

from thermoe.errors import DataError
from thermoe.types import IntArray

MAGIC = b"SQLite format 3\x00"
#: Stands for NULL in arrays of integers.
MISSING = -(2**63)
MAX_TEXT = 4096
_CHUNK_ROWS = 65_536
#: Largest file whose pages are all checked before it is read [byte].
CHECKED_BYTES = 256 << 20
_HEAP_BYTES = 256 << 20
_VALUE_BYTES = 32 << 20
_BASE_S, _BYTES_PER_S = 60.0, 1e6
_IDS_AT_ONCE = 500


class SqliteFile:
    """One database, opened immutable.

    Only real tables are seen: a view could hide an endless query. Files of up to 256 MB are checked
    before they are read, larger ones fail where a damaged page is met.

    Args:
        path: The file.
        remedy: What the user can do about a file that is damaged, for the message.

    Raises:
        DataError: If the file is truncated, damaged or no database.
    """

    def __init__(self, path: Path, remedy: str) -> None:
        self._path, self._remedy = path, remedy
        size_bytes = _check_header(path, remedy)
        self._deadline_s = time.monotonic() + _BASE_S + size_bytes / _BYTES_PER_S
        with self._one_line():
            self._connection = self._open()
            try:
                if size_bytes <= CHECKED_BYTES:
                    self._check_pages()
                self.tables: Mapping[str, str] = self._find_tables()
            except BaseException:
                self._connection.close()
                raise
        self._columns: dict[str, Mapping[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def find(self, *names: str) -> str | None:
        """The first of these tables that the file has, as it spells it."""
        return next((self.tables[name.lower()] for name in names if name.lower() in self.tables), None)

    def columns(self, table: str) -> Mapping[str, str]:
        """Columns of a table: the file's spelling by the name in lower case."""
        if table not in self._columns:
            rows = self.query(f"PRAGMA table_info({_quoted(table)})")
            self._columns[table] = {str(row[1]).lower(): str(row[1]) for row in rows}
        return self._columns[table]

    def count(self, table: str) -> int:
        """Number of rows."""
        return int(next(self.query(f"SELECT count(*) FROM {_quoted(table)}"))[0])

    def integers(
        self, table: str, names: Sequence[str], extra: Mapping[str, str] | None = None, where: str = ""
    ) -> dict[str, IntArray]:
        """Whole columns as arrays (N,); `MISSING` where the value is no integer or the column does not exist.

        Args:
            table: Its name in the file.
            names: Columns by their usual names.
            extra: SQL expressions that give integers, by the name of the result.
            where: SQL condition, trusted.
        """
        known = self.columns(table)
        present = [name for name in names if name.lower() in known]
        terms = [_integer(_quoted(known[name.lower()])) for name in present]
        terms += [_integer(term) for term in (extra or {}).values()]
        labels = [*present, *(extra or {})]
        found = self._arrays(
            f"SELECT {', '.join(terms) or _integer('NULL')} FROM {_quoted(table)} {where}", max(len(terms), 1)
        )
        result = dict(zip(labels, found, strict=False))
        absent = np.full(len(found[0]), MISSING, dtype=np.int64)
        return {name: result.get(name, absent) for name in [*names, *(extra or {})]}

    def rows(self, table: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """A small table as dictionaries; `None` for columns that do not exist. Text is cut at 4096 characters."""
        known = self.columns(table)
        terms = [_short(_quoted(known[name.lower()])) if name.lower() in known else "NULL" for name in names]
        query = f"SELECT {', '.join(terms)} FROM {_quoted(table)} LIMIT 100000"
        return [dict(zip(names, row, strict=True)) for row in self.query(query)]

    def texts(self, table: str, key: str, value: str, keys: Iterable[int]) -> dict[int, str]:
        """Text of the wanted keys; those that the table lacks are left out. `value` is an SQL expression."""
        wanted = sorted({int(k) for k in keys} - {MISSING})
        found: dict[int, str] = {}
        for first in range(0, len(wanted), _IDS_AT_ONCE):
            some = wanted[first : first + _IDS_AT_ONCE]
            marks = ", ".join("?" * len(some))
            query = f"SELECT {key}, {_short(value)} FROM {_quoted(table)} WHERE {key} IN ({marks})"
            found |= {int(k): text for k, text in self.query(query, some) if isinstance(text, str)}
        return found

    def query(self, sql: str, values: Sequence[int] = ()) -> Iterator[tuple[Any, ...]]:
        """Rows of a query, as they come."""
        with self._one_line():
            yield from self._connection.execute(sql, values)

    def _arrays(self, sql: str, width: int) -> list[IntArray]:
        chunks = [np.empty((0, width), dtype=np.int64)]
        with self._one_line():
            cursor = self._connection.execute(sql)
            while rows := cursor.fetchmany(_CHUNK_ROWS):
                chunks.append(np.array(rows, dtype=np.int64))
        return list(np.concatenate(chunks).T)

    def _open(self) -> sqlite3.Connection:
        address = f"file:{quote(str(self._path.absolute()))}?mode=ro&immutable=1"
        connection = sqlite3.connect(address, uri=True)
        connection.text_factory = lambda raw: raw.decode("utf-8", errors="replace")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_BYTES)
        connection.set_progress_handler(lambda: int(time.monotonic() > self._deadline_s), 50_000)
        for setting in ("trusted_schema=OFF", "cell_size_check=ON", f"hard_heap_limit={_HEAP_BYTES}"):
            connection.execute(f"PRAGMA {setting}").fetchall()
        return connection

    def _check_pages(self) -> None:
        verdict = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict is None or verdict[0] != "ok":
            words = " ".join(str(verdict[0]).split()) if verdict else "no verdict"
            raise DataError(f"{self._path} is damaged ({words[:200]}): {self._remedy}")

    def _find_tables(self) -> dict[str, str]:
        rows = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {str(name).lower(): str(name) for (name,) in rows}

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError, MemoryError, UnicodeError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            reason = "its schema is no text" if isinstance(error, UnicodeError) else reason
            if "interrupted" in reason:
                reason = "reading took too long"
            raise DataError(f"{self._path} cannot be read ({reason}): {self._remedy}") from None


def _check_header(path: Path, remedy: str) -> int:
    """Size of the file [byte]; an error if it is shorter than its own header says."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(MAGIC):
        raise DataError(f"{path} is not an SQLite database: {remedy}")
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65_536 if page_bytes == 1 else page_bytes
    num_pages = int.from_bytes(header[28:32], "big")
    is_count_valid = header[24:28] == header[92:96]
    if is_count_valid and num_pages * page_bytes > size_bytes:
        raise DataError(
            f"{path} is truncated: {size_bytes} of {num_pages * page_bytes} bytes are there; copy it again or {remedy}"
        )
    return size_bytes


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _integer(term: str) -> str:
    return f"CASE typeof({term}) WHEN 'integer' THEN {term} ELSE {MISSING + 1} - 1 END"


def _short(term: str) -> str:
    return f"CASE typeof({term}) WHEN 'text' THEN substr({term}, 1, {MAX_TEXT}) ELSE {term} END"
