"""Finds out what a profiler's file is, by its content, and reads it."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

from thermoe.errors import DataError
from thermoe.profiling.parsing.ncu import parse_ncu
from thermoe.profiling.parsing.nsys import parse_nsys
from thermoe.profiling.parsing.sqlite_file import MAGIC
from thermoe.profiling.parsing.table import Trace
from thermoe.profiling.parsing.torch_trace import parse_torch_trace

PARSERS: dict[str, Callable[[Path], Trace]] = {"nsys": parse_nsys, "ncu": parse_ncu, "torch": parse_torch_trace}
_GZIP_MAGIC = b"\x1f\x8b"
_HEAD_BYTES = 64
#: Files that hold profiles in a form that only their own program reads, and how to make one that can be read.
_NEEDS_EXPORT = {
    ".nsys-rep": "export it with nsys export --type sqlite",
    ".qdrep": "export it with nsys export --type sqlite",
    ".ncu-rep": "export it with ncu --import FILE --csv --page raw",
}
_EXPECTED = {".sqlite": "nsys", ".db": "nsys", ".csv": "ncu", ".json": "torch"}


def read_trace(path: Path) -> tuple[str, Trace]:
    """Format ("nsys", "ncu" or "torch") and content of one file.

    Raises:
        DataError: If it is missing, empty, of no known format, or damaged.
    """
    kind = find_format(path)
    return kind, PARSERS[kind](path)


def find_format(path: Path) -> str:
    """Format of a file by its first bytes; a name that promises another one is an error.

    Raises:
        DataError: If the file is missing, empty or of no known format.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: name the files of a profiler in it")
    if not path.is_file():
        raise DataError(f"no file {path}: needed an nsys .sqlite, an ncu .csv or a torch.profiler trace .json[.gz]")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: the profiler wrote nothing, or the copy failed; record it again")
    if path.suffix in _NEEDS_EXPORT:
        raise DataError(f"{path} can be read by its own program only: {_NEEDS_EXPORT[path.suffix]}")
    found = _by_content(path)
    promised = _EXPECTED.get(path.suffix.lower())
    if promised == "nsys" and found != "nsys":
        raise DataError(
            f"{path} is not an SQLite database, though its name says so: export with nsys export --type sqlite"
        )
    return found


def _by_content(path: Path) -> str:
    head = _head(path)
    if head.startswith(MAGIC[:6]):
        return "nsys"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] in (b"{", b"["):
        return "torch"
    if b"\0" in head:
        raise DataError(
            f"{path} is neither a database nor text: needed an nsys .sqlite, an ncu .csv or a torch.profiler .json[.gz]"
        )
    return "ncu"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head.startswith(_GZIP_MAGIC):
        return head
    try:
        with gzip.open(path) as unpacked:
            return unpacked.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be unpacked ({reason}): record the trace again") from None
