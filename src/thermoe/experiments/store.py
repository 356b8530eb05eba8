"""The run folder on disk: finished batches are there whole or not at all, whatever kills the run.

Each batch of one arm is written into `parts/NNNNNN.tmp`, synced, and renamed; the rename is what
makes it finished. When the run ends all parts are joined into one table each; `batches` comes
last, so that its presence means that the parts are no longer needed.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from thermoe.errors import ConfigError, DataError, ThermoeError
from thermoe.experiments.columns import SCHEMAS
from thermoe.experiments.lock import LOCK_FILE, hold

TABLES = ("steps", "experts", "telemetry", "batches")  # in the order in which they are joined
CONFIG_FILE, ENV_FILE = "config.toml", "env.json"
Rows = Sequence[Mapping[str, Any]]


class BatchKey(NamedTuple):
    """One batch of one arm."""

    workload: str
    seed: int
    strategy: str
    batch_index: int


class RunStore:
    """Writes one run folder and knows which batches it already holds.

    Attributes:
        path: The folder.
        finished: Keys of the batches that are safely on disk.
        arm_states: What each arm (workload, seed, strategy) needs to go on after its last batch.
        is_joined: Whether the run has ended and its parts are joined.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts = path / "parts"
        self.finished: set[BatchKey] = set()
        self.arm_states: dict[tuple[str, int, str], dict[str, Any]] = {}
        self.is_joined = False
        self._next = 0

    @classmethod
    def create(cls, path: Path, config_toml: str, env: Mapping[str, Any]) -> Self:
        """A new run folder, made beside its place and renamed; a path that is taken is refused.

        A folder that is there and empty is kept and filled: it may be a mount point, or where the user stands.
        """
        cls.refuse_taken(path)
        place = path.resolve()  # `.` has no name to make a folder beside
        stands = place.is_dir()
        unfinished = place / ".tmp" if stands else place.with_name(f"{place.name}.tmp")
        with one_line_when_full(path, unfinished, remedy="free some, or choose another --out"):
            (unfinished / "parts").mkdir(parents=True, exist_ok=True)
            hold(unfinished, path)
            _write_durably(unfinished / ENV_FILE, json.dumps(env, indent=2).encode())
            _write_durably(unfinished / CONFIG_FILE, config_toml.encode())
            if stands:
                for name in (LOCK_FILE, "parts", ENV_FILE, CONFIG_FILE):  # the last one makes it a run
                    (unfinished / name).rename(place / name)
                unfinished.rmdir()
                _sync_folder(place)
            else:
                unfinished.rename(place)
                _sync_folder(place.parent)
        return cls(path)

    @staticmethod
    def refuse_taken(path: Path) -> None:
        """Refuse a path that something stands at already."""
        place = path.resolve()
        if not place.exists() or (place.is_dir() and not any(place.iterdir())):
            return
        if (place / CONFIG_FILE).is_file():
            raise ConfigError(f"{path} already holds a run: go on with --resume {path}, or choose another --out")
        raise ConfigError(f"{path} exists and is not an empty folder: choose another --out")

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run folder, to go on with; what a killed run left unfinished is removed.

        Raises:
            ConfigError: It is no run folder, or another process writes it.
        """
        if not (path / CONFIG_FILE).is_file():
            raise ConfigError(f"{path} holds no {CONFIG_FILE}: it is not a run folder that can be resumed")
        store = cls(path)
        with one_line_when_full(path):
            hold(path, path)
            store.parts.mkdir(exist_ok=True)
        for leftover in [*store.parts.glob("*.tmp"), *path.glob("*.tmp")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        joined = path / "batches.parquet"
        if joined.is_file():
            store.is_joined = True
            store._take_note(joined)
            store._remove_parts()
        else:
            for part in store._part_folders():
                store._take_note(part / "batches.parquet")
                store._next = int(part.name) + 1
        return store

    def append(self, key: BatchKey, tables: Mapping[str, Rows]) -> None:
        """Put one finished batch on disk; on return it survives a kill and a power cut.

        Args:
            key: Which batch; its four columns are added to every row.
            tables: Rows of `batches` (exactly one), `steps`, `experts` and `telemetry`.
        """
        if key in self.finished:
            raise AssertionError(f"batch {key} written twice")
        final = self.parts / f"{self._next:06d}"
        unfinished = final.with_suffix(".tmp")
        with one_line_when_full(self.path, unfinished):
            unfinished.mkdir()
            for name in TABLES:
                rows = [key._asdict() | dict(row) for row in tables.get(name, ())]
                if rows:
                    _write_durably(unfinished / f"{name}.parquet", _parquet_bytes(table_of(name, rows)))
            _sync_folder(unfinished)
            unfinished.rename(final)
            _sync_folder(self.parts)
        self._next += 1
        self.finished.add(key)
        self._note_state(key, tables["batches"][0].get("arm_state"))

    def join(self) -> None:
        """Join all parts into one file per table and drop the parts; harmless when called again."""
        if self.is_joined:
            return
        parts = self._part_folders()
        with one_line_when_full(self.path):
            for name in TABLES:
                files = [file for part in parts if (file := part / f"{name}.parquet").is_file()]
                table = pa.concat_tables([_read(file) for file in files]) if files else table_of(name, [])
                self.write_bytes(f"{name}.parquet", _parquet_bytes(table))
        self.is_joined = True
        self._remove_parts()

    def write_text(self, name: str, text: str) -> None:
        """Replace a file of the folder in one step."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Replace a file of the folder in one step."""
        unfinished = self.path / f"{name}.tmp"
        with one_line_when_full(self.path, unfinished):
            _write_durably(unfinished, content)
            unfinished.rename(self.path / name)
            _sync_folder(self.path)

    def _part_folders(self) -> list[Path]:
        return sorted((p for p in self.parts.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))

    def _remove_parts(self) -> None:
        if self.parts.is_dir():
            shutil.rmtree(self.parts)

    def _take_note(self, batches: Path) -> None:
        for row in _read(batches).select([*BatchKey._fields, "arm_state"]).to_pylist():
            key = BatchKey(*(row[name] for name in BatchKey._fields))
            self.finished.add(key)
            self._note_state(key, row["arm_state"])

    def _note_state(self, key: BatchKey, arm_state: str | None) -> None:
        if arm_state:
            self.arm_states[key[:3]] = json.loads(arm_state)


class one_line_when_full:  # noqa: N801 - reads as a clause
    """Turn a full disk or quota into one line that says what to do, and leave nothing half-written."""

    def __init__(self, target: Path, unfinished: Path | None = None, remedy: str | None = None) -> None:
        self.target, self.unfinished = target, unfinished
        self.remedy = remedy or f"free some, then go on with --resume {target}; finished batches are kept"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if not isinstance(err, OSError):
            return
        if self.unfinished is not None:
            if self.unfinished.is_dir():
                shutil.rmtree(self.unfinished, ignore_errors=True)
            else:
                with suppress(OSError):
                    self.unfinished.unlink()
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ThermoeError(f"no space left for {self.target}: {self.remedy}") from err
        raise ConfigError(f"cannot write {self.target}: {err.strerror or err}; choose another --out") from err


def write_file(path: Path, text: str) -> None:
    """Write a file on its own whole or not at all, its folder made where it is missing.

    Raises:
        ThermoeError: No space, no permission, or something else stands in its place.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    with one_line_when_full(path, unfinished, remedy="free some, or choose another --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_durably(unfinished, text.encode())
        unfinished.rename(path)


def table_of(name: str, rows: Rows) -> Any:
    """An Arrow table with the columns and types of `thermoe.experiments.columns`."""
    schema = SCHEMAS[name]
    unknown = {column for row in rows for column in row} - set(schema.names)
    assert not unknown, f"table {name} has no column {', '.join(sorted(unknown))}"
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def _parquet_bytes(table: Any) -> bytes:
    buffer = BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _read(path: Path) -> Any:
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except (pa.ArrowException, OSError) as err:
        reason = " ".join(str(err).split())
        raise DataError(f"{path} cannot be read ({reason}): delete it if its batch may be lost") from err


def _write_durably(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
